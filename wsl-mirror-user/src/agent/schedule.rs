//! When to look at what. Pure: times are told to it.

use std::time::{Duration, Instant};

use super::events::Event;
use super::keeper::Repair;

/// Changes of packet filters and of a file come in bursts: so long nothing more has to come, but no longer is waited than
/// this.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How often is looked at what nothing tells of: whether the program still hangs there, iptables-legacy, sockets that
/// were handed to us without a tag.
const LOOK: Duration = Duration::from_secs(30);
/// The same while another distribution steers: that it was terminated, nothing tells either.
const LOOK_ASIDE: Duration = Duration::from_secs(5);
/// The same once it does not any more: what is free for so long is taken over.
const LOOK_FREE: Duration = Duration::from_millis(2100);
/// Of iptables-legacy nothing tells, but engines that change it make interfaces too, mostly before: so it is read so long
/// after the last change of the machine, or this long after the first.
const LEGACY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How soon is tried again what has failed; each time twice as long, up to [`LOOK`].
const RETRY: Duration = Duration::from_secs(1);
/// So many repairs within so long, and from then on one in so long until there was nothing to repair for as long:
/// somebody else wants it otherwise, again and again.
const FIGHT: (usize, Duration, Duration) = (10, Duration::from_secs(10), Duration::from_secs(5));

/// What may have changed. Interfaces, policy rules and sysctls are read in any case: that costs next to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set, each of its members with a name")]
pub struct Changes {
    /// Something that is read in any case.
    pub machine: bool,
    /// The packet filters.
    pub packet_filters: bool,
    /// The configuration.
    pub config: bool,
    /// What nothing tells of.
    pub untold: bool,
    /// The older packet filters, if there are any.
    pub legacy: bool,
}

impl Changes {
    /// All there is.
    pub const ALL: Self =
        Self { machine: true, packet_filters: true, config: true, untold: true, legacy: true };

    /// Whether there is nothing to look at.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A look that waits for quiet.
#[derive(Clone, Copy, Debug)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl Burst {
    fn note(burst: &mut Option<Self>, now: Instant) {
        let first = burst.map_or(now, |burst| burst.first);
        *burst = Some(Self { first, last: now });
    }

    fn due(self, (quiet, impatience): (Duration, Duration)) -> Instant {
        (self.last + quiet).min(self.first + impatience)
    }
}

/// What is due when.
#[derive(Debug)]
pub struct Schedule {
    machine: Option<Instant>,
    packet_filters: Option<Burst>,
    config: Option<Burst>,
    legacy: Option<Burst>,
    look: Instant,
    is_aside: bool,
    retry: Option<(Instant, Duration)>,
    /// Whether the configuration, as it is, is not in force; on another machine it could be.
    is_config_refused: bool,
    /// The last ones.
    repairs: Vec<Instant>,
    /// Nothing is repaired before, for nothing would come of it. Everything else is done at once.
    truce: Option<Instant>,
    /// Whether a repair waits for that.
    is_held_back: bool,
}

impl Schedule {
    /// Everything was just looked at.
    pub fn new(now: Instant) -> Self {
        Self {
            machine: None,
            packet_filters: None,
            config: None,
            legacy: None,
            look: now + LOOK,
            is_aside: false,
            retry: None,
            is_config_refused: false,
            repairs: Vec::new(),
            truce: None,
            is_held_back: false,
        }
    }

    /// Something has happened.
    pub fn note(&mut self, event: Event, now: Instant) {
        match event {
            Event::Machine => {
                self.machine = self.machine.or(Some(now));
                Burst::note(&mut self.legacy, now);
            }
            Event::PacketFilters => Burst::note(&mut self.packet_filters, now),
            Event::Config => Burst::note(&mut self.config, now),
            Event::Reload => {
                let long_ago = Burst { first: now, last: now.checked_sub(PATIENCE.0).unwrap_or(now) };
                (self.config, self.packet_filters) = (Some(long_ago), Some(long_ago));
                self.look = now;
            }
            Event::Stop => {}
        }
    }

    /// When the next look is due.
    pub fn next(&self) -> Instant {
        let held_back = self.truce.filter(|_| self.is_held_back);
        let bursts =
            [self.packet_filters, self.config].into_iter().flatten().map(|burst| burst.due(PATIENCE));
        let legacy = self.legacy.map(|burst| burst.due(LEGACY));
        let retry = self.retry.map(|(retry, _)| retry);
        bursts.chain(self.machine).chain(held_back).chain(legacy).chain(retry).fold(self.look, Instant::min)
    }

    /// Whether somebody else wants it otherwise, and is not to be fought just now.
    pub fn is_patient(&self, now: Instant) -> bool {
        self.truce.is_some_and(|truce| now < truce)
    }

    /// What is due now. A failure is tried again with all there is, but for a file that may be half written.
    pub fn take(&mut self, now: Instant) -> Changes {
        let is_due = |burst: Option<Burst>| burst.is_some_and(|burst| burst.due(PATIENCE) <= now);
        let is_look = self.look <= now;
        let mut changes = Changes {
            machine: self.machine.is_some() || self.is_held_back && !self.is_patient(now),
            packet_filters: is_due(self.packet_filters),
            config: is_due(self.config) || is_look && self.is_config_refused && self.config.is_none(),
            untold: is_look,
            legacy: self.legacy.is_some_and(|burst| burst.due(LEGACY) <= now),
        };
        if self.retry.is_some_and(|(retry, _)| retry <= now) {
            changes = Changes { config: changes.config || self.config.is_none(), ..Changes::ALL };
        }
        if changes.machine {
            self.machine = None;
            self.is_held_back = false;
        }
        if changes.packet_filters {
            self.packet_filters = None;
        }
        if changes.config {
            self.config = None;
        }
        if changes.legacy {
            self.legacy = None;
        }
        if changes.untold {
            self.look = now + if self.is_aside { LOOK_ASIDE } else { LOOK };
        }
        changes
    }

    /// A round has come to its end.
    pub fn went_well(&mut self, repair: Repair, now: Instant) {
        let (many, within, pause) = FIGHT;
        self.retry = None;
        self.repairs.retain(|repair| *repair + within > now);
        match repair {
            Repair::None => {}
            Repair::HeldBack => self.is_held_back = true,
            Repair::Done => {
                // Each in the rhythm of a truce is one of those that keep it up.
                let is_fought = self.truce.is_some() && !self.repairs.is_empty();
                self.repairs.push(now);
                self.truce = (is_fought || self.repairs.len() >= many).then_some(now + pause);
            }
        }
    }

    /// Whether the configuration, as it is, is not in force.
    pub const fn refuses_config(&mut self, is_refused: bool) {
        self.is_config_refused = is_refused;
    }

    /// A round has failed.
    pub fn went_wrong(&mut self, now: Instant) {
        let pause = self.retry.map_or(RETRY, |(_, pause)| (pause * 2).min(LOOK));
        self.retry = Some((now + pause, pause));
    }

    /// Whether another distribution steers, and if so, whether it does not just now.
    pub fn stands_aside(&mut self, aside: Option<bool>, now: Instant) {
        if let Some(is_free) = aside {
            let soon = now + if is_free { LOOK_FREE } else { LOOK_ASIDE };
            self.look = self.look.min(soon);
        }
        self.is_aside = aside.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn schedule() -> (Schedule, Instant) {
        let now = Instant::now();
        (Schedule::new(now), now)
    }

    #[test]
    fn an_interface_is_looked_at_at_once() {
        let (mut schedule, now) = schedule();
        schedule.note(Event::Machine, now);
        assert_eq!(schedule.next(), now);
        assert_eq!(schedule.take(now), Changes { machine: true, ..Changes::default() });
        assert!(schedule.take(now).is_empty());
        let later = now + LEGACY.0;
        assert_eq!(schedule.take(later), Changes { legacy: true, ..Changes::default() }, "engines go on");
    }

    #[test]
    fn packet_filters_are_read_once_they_are_quiet_but_not_never() {
        let (mut schedule, start) = schedule();
        let mut now = start;
        while schedule.take(now).is_empty() {
            schedule.note(Event::PacketFilters, now);
            now += 50 * MILLISECOND;
        }
        assert_eq!(now - start, PATIENCE.1, "one change after the other");
        schedule.note(Event::PacketFilters, now);
        assert!(schedule.take(now + 99 * MILLISECOND).is_empty());
        let changes = schedule.take(now + PATIENCE.0);
        assert_eq!(changes, Changes { packet_filters: true, ..Changes::default() });
    }

    #[test]
    fn at_rest_it_looks_twice_a_minute() {
        let (mut schedule, start) = schedule();
        let mut looks = 0;
        while schedule.next() <= start + Duration::from_mins(1) {
            let now = schedule.next();
            assert_eq!(schedule.take(now), Changes { untold: true, ..Changes::default() });
            schedule.went_well(Repair::None, now);
            looks += 1;
        }
        assert_eq!(looks, 2);
    }

    #[test]
    fn what_fails_is_tried_again_less_and_less_often() {
        let (mut schedule, mut now) = schedule();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            schedule.went_wrong(now);
            let next = schedule.next().max(schedule.retry.map_or(now, |(retry, _)| retry));
            pauses.push((next - now).as_secs());
            now = next;
            assert_eq!(schedule.take(now), Changes::ALL);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        schedule.went_well(Repair::None, now);
        assert!(schedule.next() > now + RETRY);
    }

    /// Somebody undoes at once what we do, for so long: when we repaired.
    fn fight(schedule: &mut Schedule, start: Instant, long: Duration) -> Vec<Instant> {
        let mut repairs = Vec::new();
        let mut now = start;
        while now < start + long {
            schedule.note(Event::Machine, now);
            assert!(schedule.take(now).machine, "it is looked at in any case");
            let repair = if schedule.is_patient(now) { Repair::HeldBack } else { Repair::Done };
            schedule.went_well(repair, now);
            if repair == Repair::Done {
                repairs.push(now);
            }
            now += 10 * MILLISECOND;
        }
        repairs
    }

    #[test]
    fn who_undoes_everything_we_do_is_not_fought_without_end() {
        let (mut schedule, start) = schedule();
        let repairs = fight(&mut schedule, start, Duration::from_mins(2));
        let (many, _, pause) = FIGHT;
        assert!(repairs[many - 1] - start < pause, "at once, as long as there is hope");
        assert!(repairs[many - 1..].windows(2).all(|pair| pair[1] - pair[0] >= pause), "then one in a while");
        assert_eq!(repairs.len(), many + 23, "for as long as it takes");
        // Once it was quiet, what comes is put right at once again.
        let later = repairs[repairs.len() - 1] + FIGHT.1;
        assert_eq!(fight(&mut schedule, later, Duration::from_secs(1)).len(), many);
    }

    #[test]
    fn what_was_held_back_is_done_when_the_truce_is_over() {
        let (mut schedule, start) = schedule();
        let repairs = fight(&mut schedule, start, Duration::from_secs(1));
        let truce = repairs[repairs.len() - 1] + FIGHT.2;
        schedule.legacy = None;
        assert_eq!(schedule.next(), truce);
        assert!(schedule.take(repairs[repairs.len() - 1] + FIGHT.2 / 2).is_empty());
        assert!(schedule.take(truce).machine && !schedule.is_patient(truce));
        schedule.went_well(Repair::None, truce);
        assert!(schedule.next() > truce + FIGHT.2, "they have given up");
    }

    #[test]
    fn what_fails_is_tried_again_without_a_file_that_is_being_written() {
        let (mut schedule, now) = schedule();
        schedule.went_wrong(now);
        let retry = now + RETRY;
        schedule.note(Event::Config, now + RETRY / 2 + RETRY * 49 / 100);
        assert_eq!(schedule.take(retry), Changes { config: false, ..Changes::ALL });
        assert!(schedule.take(retry + PATIENCE.0).config, "once it is quiet");
    }

    #[test]
    fn a_file_that_does_not_fit_this_machine_is_read_again_with_each_look() {
        let (mut schedule, now) = schedule();
        schedule.refuses_config(true);
        let look = now + LOOK;
        assert_eq!(schedule.take(look), Changes { untold: true, config: true, ..Changes::default() });
        schedule.refuses_config(false);
        assert!(!schedule.take(look + LOOK).config);
    }
}
