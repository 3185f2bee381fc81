//! When to glance at sockets and rules, so that containers are known a moment after they come. Pure.
//!
//! What comes alone is looked at at once. Under a storm the agent's pace wins: each kind of glance has a budget.

use std::time::{Duration, Instant};

use super::budget::Budget;
use crate::agent::changes::Glance;

const fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// A socket is bound before it listens, and dockerd writes the rules of all ports in between. After a change of interfaces,
/// addresses and routes settle.
const SOCKETS: &[Duration] =
    &[milliseconds(0), milliseconds(20), milliseconds(150), milliseconds(1000), milliseconds(3000)];
/// A change of nftables is there when it is told of. What else came at the same moment goes first.
const RULES: &[Duration] = &[milliseconds(2)];
/// No event tells of iptables-legacy. Engines make sockets and interfaces too.
const LEGACY: &[Duration] = &[milliseconds(100), milliseconds(400)];

/// Glances at sockets may take 80 ms at once, and 8 % of the time.
const SOCKETS_BUDGET: (Duration, u32) = (milliseconds(80), 12);
/// Readings of packet filters may take half a second at once, and then a seventh of the time.
const RULES_BUDGET: (Duration, u32) = (milliseconds(500), 6);

/// When to glance at what.
#[derive(Debug)]
pub struct Glances {
    sockets: Series,
    rules: Series,
    legacy: Series,
    sockets_budget: Budget,
    rules_budget: Budget,
    /// When the reading of packet filters began that is at work. There is one at a time.
    reading: Option<Instant>,
    /// When the last one began that has ended.
    read: Option<Instant>,
}

impl Glances {
    /// Nothing is due.
    pub const fn new(now: Instant) -> Self {
        Self {
            sockets: Series::new(SOCKETS),
            rules: Series::new(RULES),
            legacy: Series::new(LEGACY),
            sockets_budget: Budget::new(SOCKETS_BUDGET.0, SOCKETS_BUDGET.1, now),
            rules_budget: Budget::new(RULES_BUDGET.0, RULES_BUDGET.1, now),
            reading: None,
            read: None,
        }
    }

    /// Sockets or interfaces have changed.
    pub fn note_sockets(&mut self, now: Instant) {
        self.sockets.note(now);
        self.legacy.note(now);
    }

    /// Routes have changed.
    pub fn note_ways(&mut self, now: Instant) {
        self.sockets.note(now);
    }

    /// nftables has changed.
    pub fn note_rules(&mut self, now: Instant) {
        self.rules.note(now);
    }

    /// When the next glance is due.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let sockets = self.sockets.due.map(|due| due.max(self.sockets_budget.free(now)));
        let rules = [self.rules.due, self.legacy.due].into_iter().flatten().min();
        let rules = rules.filter(|_| self.reading.is_none()).map(|due| due.max(self.rules_budget.free(now)));
        [sockets, rules].into_iter().flatten().min()
    }

    /// What is due now.
    pub fn take(&mut self, now: Instant) -> Glance {
        let may_look = self.sockets_budget.free(now) <= now;
        let may_read = self.reading.is_none() && self.rules_budget.free(now) <= now;
        Glance {
            rules: may_read && self.rules.take(now),
            legacy: may_read && self.legacy.take(now),
            sockets: may_look && self.sockets.take(now),
        }
    }

    /// A glance at sockets has taken so long.
    pub fn glanced(&mut self, took: Duration, now: Instant) {
        self.sockets_budget.spend(took, now);
    }

    /// A reading of packet filters begins.
    pub const fn reading_begins(&mut self, now: Instant) {
        self.reading = Some(now);
    }

    /// It has ended.
    pub fn reading_ends(&mut self, now: Instant) {
        if let Some(began) = self.reading.take() {
            self.rules_budget.spend(now.saturating_duration_since(began), now);
            self.read = Some(began);
        }
    }

    /// Whether the packet filters were read since this change.
    pub fn have_read_since(&self, change: Instant) -> bool {
        self.read.is_some_and(|read| read > change)
    }
}

/// Glances that follow an event.
#[derive(Debug)]
struct Series {
    /// How long after the last event; ascending.
    offsets: &'static [Duration],
    event: Option<Instant>,
    due: Option<Instant>,
}

impl Series {
    const fn new(offsets: &'static [Duration]) -> Self {
        Self { offsets, event: None, due: None }
    }

    /// An event begins the series anew, and puts nothing off that is due.
    fn note(&mut self, now: Instant) {
        let first = self.offsets.first().map(|offset| now + *offset);
        self.event = Some(now);
        self.due = self.due.into_iter().chain(first).min();
    }

    fn take(&mut self, now: Instant) -> bool {
        let Some(event) = self.event.filter(|_| self.due.is_some_and(|due| due <= now)) else { return false };
        self.due = self.offsets.iter().map(|offset| event + *offset).find(|due| *due > now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glances() -> (Glances, Instant) {
        let now = Instant::now();
        (Glances::new(now), now)
    }

    const SOCKETS_ONLY: Glance = Glance { sockets: true, rules: false, legacy: false };

    /// Every glance until `end`, each of which takes 2 ms.
    fn run(glances: &mut Glances, mut now: Instant, end: Instant) -> Vec<(Duration, Glance)> {
        let (start, mut taken) = (now, Vec::new());
        while let Some(next) = glances.next(now).filter(|next| *next <= end) {
            now = next.max(now);
            let glance = glances.take(now);
            taken.push((now - start, glance));
            if glance.rules || glance.legacy {
                glances.reading_begins(now);
            }
            now += milliseconds(1);
            glances.glanced(milliseconds(1), now);
            glances.reading_ends(now);
        }
        taken
    }

    #[test]
    fn a_socket_alone_is_looked_at_at_once_and_again() {
        let (mut glances, now) = glances();
        glances.note_sockets(now);
        let looks: Vec<Duration> = run(&mut glances, now, now + Duration::from_mins(1))
            .into_iter()
            .filter_map(|(at, glance)| glance.sockets.then_some(at))
            .collect();
        assert_eq!(looks, SOCKETS);
        assert_eq!(glances.next(now), None, "an idle machine costs nothing");
    }

    #[test]
    fn packet_filters_alone_are_read_at_once_and_once() {
        let (mut glances, now) = glances();
        glances.note_rules(now);
        let rules = Glance { rules: true, ..Glance::default() };
        assert_eq!(run(&mut glances, now, now + Duration::from_mins(1)), [(RULES[0], rules)]);
        assert!(!glances.have_read_since(now + RULES[0]), "the change may have come during the reading");
        assert!(glances.have_read_since(now));
    }

    #[test]
    fn iptables_legacy_is_read_twice_after_a_socket() {
        let (mut glances, now) = glances();
        glances.note_sockets(now);
        let legacy: Vec<Duration> = run(&mut glances, now, now + Duration::from_mins(1))
            .into_iter()
            .filter_map(|(at, glance)| glance.legacy.then_some(at))
            .collect();
        assert_eq!(legacy, LEGACY);
    }

    #[test]
    fn a_storm_of_sockets_gets_its_share_and_puts_nothing_off() {
        let (mut glances, start) = glances();
        let (mut now, mut spent, mut last, mut legacy) = (start, Duration::ZERO, start, 0);
        while now < start + Duration::from_mins(1) {
            glances.note_sockets(now);
            let glance = glances.take(now);
            legacy += usize::from(glance.legacy);
            if glance.sockets {
                assert!(now - last <= milliseconds(200), "{:?}", now - last);
                last = now;
            }
            if glance.sockets {
                spent += milliseconds(5);
                glances.glanced(milliseconds(5), now + milliseconds(5));
            }
            now += milliseconds(1);
        }
        assert!(spent < Duration::from_secs(6), "{spent:?} of a minute");
        assert!(legacy > 100, "{legacy}");
    }

    #[test]
    fn a_long_reading_is_followed_by_a_long_rest() {
        let (mut glances, now) = glances();
        glances.note_rules(now);
        let begin = now + RULES[0];
        assert!(glances.take(begin).rules);
        glances.reading_begins(begin);
        glances.note_rules(begin + milliseconds(1));
        assert_eq!(glances.next(begin), None, "one reading at a time");
        let ended = begin + Duration::from_secs(2);
        glances.reading_ends(ended);
        assert!(glances.next(ended) >= Some(ended + Duration::from_secs(8)));
        assert_eq!(glances.take(ended), Glance::default());
        glances.note_sockets(ended);
        assert_eq!(glances.take(ended), SOCKETS_ONLY, "sockets do not wait for packet filters");
    }
}
