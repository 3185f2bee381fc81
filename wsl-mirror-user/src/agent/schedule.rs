//! When to look at what. Pure: times are told to it.

mod budget;
mod burst;
mod glances;

use std::time::{Duration, Instant};

use self::burst::{Burst, Wait};
use self::glances::Glances;
use super::changes::{Changes, Glance, Repair, Repairs};
use super::events::Event;
use super::repair_limit::RepairLimit;
use super::standing::Neighbour;

/// Packet filters and files change in bursts.
const EDIT: Wait = Wait { quiet: Duration::from_millis(100), limit: Duration::from_secs(1) };
/// A VPN changes many routes at once. The source alias' route is wanted back soon.
const ROUTING: Wait = Wait { quiet: Duration::from_millis(50), limit: Duration::from_millis(250) };
/// How often the agent looks at what no event tells: whether the program is still attached, iptables-legacy, sockets
/// that came without a tag.
const LOOK: Duration = Duration::from_secs(30);
/// The same while another distribution steers: no event tells its end either.
const LOOK_ASIDE: Duration = Duration::from_secs(5);
/// The same once it is gone: the agent takes over an interface that is free for so long.
const LOOK_FREE: Duration = Duration::from_millis(2100);
/// No event tells of iptables-legacy. Engines that change it make interfaces too, mostly before: the agent reads it after
/// changes of the machine.
const LEGACY: Wait = Wait { quiet: Duration::from_secs(1), limit: Duration::from_secs(5) };
/// How soon the agent repeats a round that has failed; each time twice as long, up to [`LOOK`].
const RETRY: Duration = Duration::from_secs(1);

/// Whether the configuration, as the file is now, is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigState {
    /// It is.
    InForce,
    /// It is not; on another machine it could be.
    Refused,
}

/// What is due when.
#[derive(Debug)]
pub struct Schedule {
    machine: Option<Instant>,
    routing: Option<Burst>,
    packet_filters: Option<Burst>,
    config: Option<Burst>,
    legacy: Option<Burst>,
    glances: Glances,
    look: Instant,
    is_aside: bool,
    retry: Option<(Instant, Duration)>,
    config_state: ConfigState,
    /// Holds repairs back; everything else is done at once.
    repair_limit: RepairLimit,
    /// Whether a repair waits for its turn.
    is_held_back: bool,
}

impl Schedule {
    /// Everything was just looked at.
    pub fn new(now: Instant) -> Self {
        Self {
            machine: None,
            routing: None,
            packet_filters: None,
            config: None,
            legacy: None,
            glances: Glances::new(now),
            look: now + LOOK,
            is_aside: false,
            retry: None,
            config_state: ConfigState::InForce,
            repair_limit: RepairLimit::default(),
            is_held_back: false,
        }
    }

    /// Something has happened.
    pub fn note(&mut self, event: Event, now: Instant) {
        match event {
            Event::Machine => {
                self.machine = self.machine.or(Some(now));
                Burst::note(&mut self.legacy, now);
                self.glances.note_sockets(now);
            }
            Event::Routing => {
                Burst::note(&mut self.routing, now);
                self.glances.note_ways(now);
            }
            Event::Sockets => {
                Burst::note(&mut self.legacy, now);
                self.glances.note_sockets(now);
            }
            Event::PacketFilters => {
                Burst::note(&mut self.packet_filters, now);
                self.glances.note_rules(now);
            }
            Event::Config => Burst::note(&mut self.config, now),
            Event::Reload => {
                let ended = Burst::ended(now, EDIT.quiet);
                (self.config, self.packet_filters) = (Some(ended), Some(ended));
                self.look = now;
            }
            Event::Stop => {}
        }
    }

    /// A glance has read something else of the leased ports: the rules that keep connections on `lo` follow at once.
    pub fn note_leased_ports(&mut self, now: Instant) {
        self.machine = self.machine.or(Some(now));
    }

    /// What to glance at now.
    pub fn take_glance(&mut self, now: Instant) -> Glance {
        self.glances.take(now)
    }

    /// A glance at sockets has taken so long.
    pub fn glanced(&mut self, took: Duration, now: Instant) {
        self.glances.glanced(took, now);
    }

    /// A reading of packet filters begins, beside everything else.
    pub const fn reading_begins(&mut self, now: Instant) {
        self.glances.reading_begins(now);
    }

    /// It has ended.
    pub fn reading_ends(&mut self, now: Instant) {
        self.glances.reading_ends(now);
    }

    /// When the next look or glance is due.
    pub fn next(&self, now: Instant) -> Instant {
        self.glances.next(now).into_iter().fold(self.next_look(), Instant::min)
    }

    /// When the next look is due.
    fn next_look(&self) -> Instant {
        let held_back = self.repair_limit.pause_end().filter(|_| self.is_held_back);
        let bursts = [self.packet_filters, self.config].into_iter().flatten().map(|burst| burst.due(EDIT));
        let routing = self.routing.map(|burst| burst.due(ROUTING));
        let legacy = self.legacy.map(|burst| burst.due(LEGACY));
        let retry = self.retry.map(|(retry, _)| retry);
        bursts
            .chain(self.machine)
            .chain(routing)
            .chain(held_back)
            .chain(legacy)
            .chain(retry)
            .fold(self.look, Instant::min)
    }

    /// Whether repairs are allowed now.
    pub fn repairs(&self, now: Instant) -> Repairs {
        self.repair_limit.repairs(now)
    }

    /// What is due now. A failure is tried again with all there is, but for a file that may be half written.
    pub fn take(&mut self, now: Instant) -> Changes {
        let is_due = |burst: Option<Burst>| burst.is_some_and(|burst| burst.due(EDIT) <= now);
        let is_look = self.look <= now;
        let is_refused = self.config_state == ConfigState::Refused;
        let is_routing = self.routing.is_some_and(|burst| burst.due(ROUTING) <= now);
        let mut changes = Changes {
            // Every round reads the routes.
            machine: self.machine.is_some()
                || is_routing
                || self.is_held_back && self.repairs(now) == Repairs::Allowed,
            packet_filters: is_due(self.packet_filters),
            are_filters_read: self
                .packet_filters
                .is_some_and(|burst| burst.due(EDIT) <= now && self.glances.have_read_since(burst.last())),
            config: is_due(self.config) || is_look && is_refused && self.config.is_none(),
            unwatched: is_look,
            legacy: self.legacy.is_some_and(|burst| burst.due(LEGACY) <= now),
        };
        if self.retry.is_some_and(|(retry, _)| retry <= now) {
            changes = Changes { config: changes.config || self.config.is_none(), ..Changes::ALL };
        }
        if changes.machine {
            (self.machine, self.routing) = (None, None);
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
        if changes.unwatched {
            self.look = now + if self.is_aside { LOOK_ASIDE } else { LOOK };
        }
        changes
    }

    /// A round has come to its end.
    pub fn went_well(&mut self, repair: Repair, now: Instant) {
        self.retry = None;
        match repair {
            Repair::None => self.repair_limit.forget_old(now),
            Repair::HeldBack => {
                self.repair_limit.forget_old(now);
                self.is_held_back = true;
            }
            Repair::Done => self.repair_limit.note_repair(now),
        }
    }

    /// Whether the configuration, as the file is now, is in force.
    pub const fn note_config(&mut self, state: ConfigState) {
        self.config_state = state;
    }

    /// A round has failed.
    pub fn went_wrong(&mut self, now: Instant) {
        let pause = self.retry.map_or(RETRY, |(_, pause)| (pause * 2).min(LOOK));
        self.retry = Some((now + pause, pause));
    }

    /// The agent stands aside for this one, or for none.
    pub fn note_neighbour(&mut self, neighbour: Option<Neighbour>, now: Instant) {
        if let Some(neighbour) = neighbour {
            let pause = match neighbour {
                Neighbour::Steering => LOOK_ASIDE,
                Neighbour::Gone => LOOK_FREE,
            };
            self.look = self.look.min(now + pause);
        }
        self.is_aside = neighbour.is_some();
    }
}

#[cfg(test)]
mod tests;
