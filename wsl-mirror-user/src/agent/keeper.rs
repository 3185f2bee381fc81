//! One round: read the state, compute the plan, carry out the difference.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::changes::{Changes, Repair, Repairs};
use super::events::Told;
use super::newest::Newest;
use super::standing::{Neighbour, Standing};
use crate::config::options::LoadOptions;
use crate::config::{Config, Switch};
use crate::host::firewall::{self, Firewall};
use crate::host::lock::Lock;
use crate::loader::apply::{self, Target, VerifierLog};
use crate::loader::listeners::{Listeners, Maps, Surroundings};
use crate::loader::local_rules::{Filters, Obstacle};
use crate::loader::look::Look;
use crate::loader::maps;
use crate::loader::state::State;
use crate::loader::step::Step;
use crate::loader::udp_hooks::UdpHooks;
use crate::loader::{local_addresses, object, plan, state};
use crate::notes::Notes;

/// What the agent knows between two rounds. All of it can be read again.
pub struct Keeper {
    options: LoadOptions,
    /// The configuration in force.
    config: Config,
    /// Why the file, as it is now, is not in force.
    pub config_error: Option<String>,
    /// Whether anything was loaded by the configuration in force.
    has_loaded: bool,
    /// Whether program and hooks are those of this release, with what the configuration says about them.
    is_loaded: bool,
    /// Whether packets are steered from here. Listeners are only followed then.
    is_active: bool,
    /// Kept, because reading it takes other people's programs.
    firewall: Option<Arc<Firewall>>,
    /// The newest reading, of rules that may be half written.
    newest: Newest,
    /// What the last round knew of the leased ports and of others' marks.
    filters: Filters,
    /// Why a part of the packet filters could not be read the last time.
    unread: Vec<String>,
    /// The sockets that serve and carry a tag.
    listeners: Listeners,
    /// Why sockets that serve carry no tag or no target.
    unwritten: Vec<String>,
    /// Why this machine's addresses could not be written the last time.
    unwritten_addresses: Option<String>,
    turn: Turn,
    /// What the last round has to tell.
    pub notes: Notes,
}

/// Whose turn it is to steer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Ours.
    Ours,
    /// Another distribution's.
    Theirs,
    /// Nobody's, since then; it was another distribution's before.
    Nobodys(Instant),
}

/// The agent takes over an interface that is free of another distribution's program for so long. The other agent knows
/// who serves, even in processes that we cannot see. It takes an interface that is made anew back within milliseconds.
const GRACE: Duration = Duration::from_secs(2);

/// What came of a round.
#[derive(Debug)]
pub struct Round {
    /// How it stands.
    pub standing: Standing,
    /// What was done, in words.
    pub steps: Vec<String>,
    /// What became of what somebody had taken away.
    pub repair: Repair,
    /// What the administrator should know although packets are steered.
    pub warnings: Vec<String>,
}

impl Keeper {
    /// Reads the configuration; a bad one is an error now, and only now.
    pub fn new(options: LoadOptions) -> Result<Self> {
        let config = options.effective_config()?;
        // So is a bad cgroup.
        let cgroup = options.open_cgroup()?;
        let notes = options.notes(&cgroup);
        Ok(Self {
            options,
            config,
            config_error: None,
            has_loaded: false,
            is_loaded: false,
            is_active: false,
            firewall: None,
            newest: Newest::default(),
            filters: Filters::default(),
            unread: Vec::new(),
            listeners: Listeners::default(),
            unwritten: Vec::new(),
            unwritten_addresses: None,
            turn: Turn::Ours,
            notes,
        })
    }

    /// Looks at what may have changed, and puts it right.
    pub fn round(&mut self, changes: Changes, repairs: Repairs, _lock: &Lock) -> Result<Round> {
        let candidate = if changes.config { self.read_config() } else { None };
        self.read_firewall(changes);
        let done = match candidate {
            Some(candidate) => self.try_out(candidate, changes, repairs),
            None => self.read_state().and_then(|state| self.put_right(&state, changes, repairs)),
        };
        give_memory_back();
        done
    }

    /// Goes by another configuration from now on, if that can be done on this machine. Else by the one before.
    fn try_out(&mut self, candidate: Config, changes: Changes, repairs: Repairs) -> Result<Round> {
        let before = (std::mem::replace(&mut self.config, candidate), self.is_loaded, self.turn);
        // What the program logs is part of it, so it is made anew; that loses no packet.
        self.is_loaded = false;
        let done = self.read_state().and_then(|state| {
            // Nor is it in force as long as another distribution steers, if it could not be afterwards.
            plan::take_over(&State { steered_by_others: None, ..state.clone() }, &self.config)?;
            self.put_right(&state, changes, repairs)
        });
        let Err(refused) = done else { return done };
        (self.config, self.is_loaded, self.turn) = before;
        self.config_error = Some(format!("the configuration does not fit this machine: {refused:#}"));
        self.read_state().and_then(|state| self.put_right(&state, changes, repairs))
    }

    /// Reads the packet filters, unless what is known of them still counts.
    fn read_firewall(&mut self, changes: Changes) {
        let last = if self.unread.is_empty() { Reading::Whole } else { Reading::Incomplete };
        let is_stale = match freshness(changes, last) {
            Freshness::Fresh => false,
            Freshness::FreshWithoutLegacyTables => firewall::has_legacy_tables(),
            Freshness::Stale => true,
        };
        if self.firewall.is_none() || is_stale {
            self.take_newest(firewall::read());
            self.firewall = self.newest.firewall.clone();
        } else if changes.are_filters_read {
            self.firewall = self.newest.firewall.clone();
        }
    }

    fn take_newest(&mut self, read: Firewall) {
        self.unread = if read.has_gaps { read.unread.clone() } else { Vec::new() };
        self.newest.take(read);
    }

    /// Follows sockets between two rounds: the containers behind listeners. Without the lock, since it only writes onto
    /// sockets. It is silent about failures: the regular look tells of those that last.
    pub fn glance(&mut self, told: &Told) {
        self.listeners.note(&told.cookies, Instant::now());
        if told.has_gaps {
            self.listeners.note_lost();
        }
        if self.is_active {
            let _ = self.follow(Look::Noted);
        }
    }

    /// Takes packet filters that were read between two rounds. Only the containers behind listeners follow them at once:
    /// rules may be half written. Says whether the rules that keep connections on `lo` have to follow: for another block of
    /// ports they are poison.
    #[must_use]
    pub fn take_rules(&mut self, read: Firewall) -> bool {
        self.take_newest(read);
        self.newest.filters() != self.filters
    }

    /// Tags listeners, and writes their targets. Gives notes on what failed.
    fn follow(&mut self, look: Look) -> Result<Vec<String>> {
        let mut maps = Maps { owners: maps::SOCKET_OWNER.pinned()?, targets: maps::SOCKET_TARGET.pinned()? };
        let owners = self.config.owner_policies();
        let surroundings = Surroundings {
            owners: &owners,
            publications: &self.newest.publications,
            linux_access: &self.newest.linux_access,
            interface: &self.config.interface,
        };
        let cgroup = || self.options.open_cgroup();
        let mut udp_hooks = UdpHooks::pinned(&cgroup, self.config.linux_clients);
        Ok(self.listeners.look(look, &mut maps, &mut udp_hooks, &surroundings))
    }

    /// Renews this machine's addresses whose clients are translated. Gives a note if that has failed.
    fn write_addresses(&self, state: &State) -> Option<String> {
        let written = match self.config.linux_clients {
            Switch::Auto => local_addresses::write(&state.local_addresses),
            Switch::Off => local_addresses::clear(),
        };
        let error = written.err()?;
        Some(format!("Linux' connects to this machine's LAN addresses may be left alone: {error:#}"))
    }

    /// Reads everything else.
    fn read_state(&mut self) -> Result<State> {
        let firewall = self.firewall.clone().unwrap_or_default();
        self.filters = self.newest.filters();
        state::read_with(&self.config, firewall, self.filters.clone())
    }

    fn put_right(&mut self, state: &State, changes: Changes, repairs: Repairs) -> Result<Round> {
        let interface = self.config.interface.clone();
        if let Some(neighbour) = self.neighbour(state) {
            self.is_active = false;
            // The rules are the other one's now.
            let marking =
                state.settings.filter(|settings| settings.lo_mark != 0 && state.local_rules.are_anothers());
            if let Some(settings) = marking {
                self.carry_out(&[Step::UsePinned, Step::ClearLoMark(settings)], state)?;
            }
            local_addresses::clear()?;
            // What is pinned here is of no use now, and is taken up again when it is.
            return Ok(Round {
                standing: Standing::Aside { interface, neighbour },
                steps: Vec::new(),
                repair: Repair::None,
                warnings: Vec::new(),
            });
        }
        let plan = if self.is_loaded { plan::difference } else { plan::take_over };
        let mut steps = plan(state, &self.config)?;
        let ifindex = state.interface.index;
        let is_same_interface = state.settings.is_some_and(|settings| settings.ifindex == ifindex);
        let mut repair = Repair::None;
        if self.is_loaded && is_same_interface && steps.iter().any(Step::is_repair) {
            match repairs {
                Repairs::Allowed => repair = Repair::Done,
                Repairs::HeldBack => {
                    repair = Repair::HeldBack;
                    steps = plan::without_repairs(steps);
                }
            }
        }
        self.carry_out(&steps, state)?;
        if changes.unwatched {
            self.unwritten = self.follow(Look::Everything)?;
        }
        self.unwritten_addresses = self.write_addresses(state);
        self.is_active = true;
        let had_loaded = std::mem::replace(&mut self.has_loaded, true);
        self.is_loaded = true;
        Ok(Round {
            standing: match ifindex {
                0 => Standing::Waiting { interface },
                ifindex => Standing::Steering { interface, ifindex },
            },
            repair,
            steps: if had_loaded { steps.iter().map(ToString::to_string).collect() } else { Vec::new() },
            warnings: self.warnings(state),
        })
    }

    fn carry_out(&mut self, steps: &[Step], state: &State) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let loads = steps.iter().any(|step| matches!(step, Step::LoadProgram { .. }));
        let object = if loads { object::for_this_kernel()? } else { object::Fitted::default() };
        let target = Target {
            interface: &self.config.interface,
            firewall: &state.firewall,
            object: &object,
            cgroup: self.options.open_cgroup()?,
            verifier_log: VerifierLog::End,
        };
        let (notes, done) = apply::apply(steps, target);
        self.notes.extend(notes);
        done
    }

    fn warnings(&self, state: &State) -> Vec<String> {
        let obstacles = state.obstacles(self.config.alias).into_iter();
        let obstacles = obstacles.map(|obstacle| format!("no flow can be carried: {obstacle}"));
        let unwritten = self.unwritten.iter().chain(&self.unwritten_addresses).cloned();
        let mut warnings: Vec<String> = obstacles.chain(unwritten).collect();
        if state.interface.index != 0 {
            let obstacle = state.source_alias.obstacle();
            warnings.extend(obstacle.map(|obstacle| format!("no flow goes direct: {obstacle}")));
            let obstacle = state.local_rules.obstacle();
            // The source alias' obstacle names table 127 already.
            let obstacle = obstacle.filter(|one| matches!(one, Obstacle::NoBlock | Obstacle::NoBit));
            warnings.extend(obstacle.map(|obstacle| format!("no connection is kept on lo: {obstacle}")));
        }
        if !self.unread.is_empty() {
            let known = if state.firewall.has_gaps { "say is not known" } else { "said before counts" };
            let why = self.unread.join("; ");
            warnings.push(format!("some packet filters could not be read, and what they {known}: {why}"));
        }
        warnings
    }

    /// The neighbour for which we stand aside: it steers, or still has the chance to.
    fn neighbour(&mut self, state: &State) -> Option<Neighbour> {
        let is_there = state.interface.index != 0;
        self.turn = match (state.steered_by_others, self.turn) {
            (Some(_), _) => Turn::Theirs,
            (None, Turn::Theirs | Turn::Nobodys(_)) if !is_there => Turn::Theirs,
            (None, Turn::Theirs) => Turn::Nobodys(Instant::now()),
            (None, Turn::Nobodys(since)) if since.elapsed() >= GRACE => Turn::Ours,
            (None, turn) => turn,
        };
        match self.turn {
            Turn::Ours => None,
            Turn::Theirs => Some(Neighbour::Steering),
            Turn::Nobodys(_) => Some(Neighbour::Gone),
        }
    }

    /// What the file says, if it is valid and not what we go by already.
    fn read_config(&mut self) -> Option<Config> {
        let read = self.options.effective_config();
        self.config_error = read.as_ref().err().map(|error| format!("{error:#}"));
        read.ok().filter(|config| *config != self.config)
    }
}

/// How the last reading of the packet filters ended.
#[derive(Clone, Copy)]
enum Reading {
    Whole,
    /// A part could not be read.
    Incomplete,
}

/// Whether what is known of the packet filters still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    Fresh,
    /// It counts where there are no tables of the legacy iptables, which nobody reports changes of.
    FreshWithoutLegacyTables,
    /// They have to be read again.
    Stale,
}

fn freshness(changes: Changes, last: Reading) -> Freshness {
    match last {
        _ if changes.packet_filters && !changes.are_filters_read => Freshness::Stale,
        Reading::Incomplete if changes.unwatched => Freshness::Stale,
        _ if changes.unwatched || changes.legacy => Freshness::FreshWithoutLegacyTables,
        _ => Freshness::Fresh,
    }
}

/// A load needs some megabytes for a moment (the kernel's types, packet filters as text), and glibc would keep them.
#[cfg(target_env = "gnu")]
fn give_memory_back() {
    // SAFETY: it has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// Others give it back by themselves.
#[cfg(not(target_env = "gnu"))]
const fn give_memory_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_filters_are_read_after_a_change_and_after_a_failure() {
        let changes = Changes { packet_filters: true, ..Changes::default() };
        assert_eq!(freshness(changes, Reading::Whole), Freshness::Stale);
        let look = Changes { unwatched: true, ..Changes::default() };
        assert_eq!(freshness(look, Reading::Whole), Freshness::FreshWithoutLegacyTables);
        assert_eq!(freshness(look, Reading::Incomplete), Freshness::Stale);
        let legacy = Changes { legacy: true, ..Changes::default() };
        assert_eq!(freshness(legacy, Reading::Whole), Freshness::FreshWithoutLegacyTables);
        assert_eq!(freshness(legacy, Reading::Incomplete), Freshness::FreshWithoutLegacyTables);
        // Of these there may be many, and each reading may take seconds to fail.
        let machine = Changes { machine: true, config: true, ..Changes::default() };
        assert_eq!(freshness(machine, Reading::Incomplete), Freshness::Fresh);
    }
}
