//! One round: what is there, what should be, and the difference carried out.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::schedule::Changes;
use crate::config::Config;
use crate::datapath::apply::{self, Target};
use crate::datapath::maps::SocketOwners;
use crate::datapath::plan::{self, State, Step};
use crate::datapath::{object, owners, state};
use crate::host::firewall::{self, Firewall};
use crate::host::{cgroup, lock::Lock};
use crate::wanted::Wanted;

/// What is known between two rounds, all of which can be read again.
pub struct Keeper {
    wanted: Wanted,
    config: Config,
    /// Why the file, as it is now, is not what we go by.
    pub config_error: Option<String>,
    /// Whether program and hooks are those of this release, with what the configuration says about them.
    is_loaded: bool,
    /// Kept, because reading it takes other people's programs.
    firewall: Option<Firewall>,
    sockets: HashSet<u32>,
    turn: Turn,
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

/// How long an interface has to be free of another distribution's program until it is taken over. Whoever had it knows
/// who serves, even in processes that we cannot see; it takes its interface back within some milliseconds, if it is made
/// anew.
const GRACE: Duration = Duration::from_secs(2);

/// What came of a round.
#[derive(Debug)]
pub struct Round {
    /// How it stands.
    pub standing: Standing,
    /// What was done, in words.
    pub steps: Vec<String>,
    /// Whether that was to put back what somebody had taken away.
    pub repaired: bool,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Packets are steered.
    Steering {
        /// The interface.
        interface: String,
        /// Its index.
        ifindex: u32,
    },
    /// There is no such interface (yet).
    Waiting {
        /// Its name.
        interface: String,
    },
    /// Another distribution steers.
    Aside {
        /// The interface.
        interface: String,
        /// Whether it did not just now.
        is_free: bool,
    },
}

impl Standing {
    /// As `status --json` has it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Steering { .. } => "steering",
            Self::Waiting { .. } => "waiting",
            Self::Aside { .. } => "aside",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steering { interface, ifindex } => write!(f, "steering {interface} (index {ifindex})"),
            Self::Waiting { interface } => write!(f, "waiting for {interface}"),
            Self::Aside { interface, .. } => write!(
                f,
                "wsl-mirror of another distribution steers {interface}: standing aside until it does not any more"
            ),
        }
    }
}

impl Keeper {
    /// Reads the configuration; a bad one is an error now, and only now.
    pub fn new(wanted: Wanted) -> Result<Self> {
        let config = wanted.effective_config()?;
        // So is a bad cgroup.
        wanted.open_cgroup()?;
        Ok(Self {
            wanted,
            config,
            config_error: None,
            is_loaded: false,
            firewall: None,
            sockets: HashSet::new(),
            turn: Turn::Ours,
        })
    }

    /// Looks at what may have changed, and puts it right.
    pub fn round(&mut self, changes: Changes) -> Result<Round> {
        if changes.config {
            self.read_config();
        }
        let _lock = Lock::take()?;
        let is_stale =
            changes.packet_filters || (changes.untold || changes.legacy) && firewall::has_legacy_tables();
        let cached = self.firewall.take().filter(|_| !is_stale);
        let firewall = cached.unwrap_or_else(firewall::read);
        let mut state = state::read_with(&self.config.interface, self.config.hook, firewall)?;
        let done = self.put_right(&state, changes);
        self.firewall = Some(std::mem::take(&mut state.delivery.firewall));
        give_memory_back();
        done
    }

    fn put_right(&mut self, state: &State, changes: Changes) -> Result<Round> {
        if let Some(is_free) = self.stands_aside(state) {
            // What is pinned here is of no use now, and is taken up again when it is.
            let standing = Standing::Aside { interface: self.config.interface.clone(), is_free };
            return Ok(Round { standing, steps: Vec::new(), repaired: false });
        }
        let plan = if self.is_loaded { plan::difference } else { plan::plan };
        let interface = self.config.interface.clone();
        let steps = plan(state, &self.config)?;
        if !steps.is_empty() {
            let loads = steps.iter().any(|step| matches!(step, Step::LoadProgram { .. }));
            let object = if loads { object::for_this_kernel()? } else { Vec::new() };
            let target = Target {
                interface: &interface,
                object: &object,
                cgroup: cgroup::open(self.wanted.cgroup.as_deref())?,
                whole_verifier_log: false,
            };
            apply::apply(&steps, target)?;
        }
        if changes.untold {
            let owners = self.config.owner_policies();
            owners::tag_sockets(&mut SocketOwners::pinned()?, &owners, &mut self.sockets);
        }
        let was_loaded = std::mem::replace(&mut self.is_loaded, true);
        let is_repair = |step: &Step| matches!(step, Step::PrepareDelivery(_));
        let ifindex = state.interface.index;
        let is_same_interface = state.settings.is_some_and(|settings| settings.ifindex == ifindex);
        Ok(Round {
            standing: match ifindex {
                0 => Standing::Waiting { interface },
                ifindex => Standing::Steering { interface, ifindex },
            },
            repaired: was_loaded && is_same_interface && steps.iter().any(is_repair),
            steps: if was_loaded { steps.iter().map(ToString::to_string).collect() } else { Vec::new() },
        })
    }

    /// Whether another distribution steers, or is still to be given the chance to; and if so, whether it does not now.
    fn stands_aside(&mut self, state: &State) -> Option<bool> {
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
            Turn::Theirs => Some(false),
            Turn::Nobodys(_) => Some(true),
        }
    }

    /// The file's, if it is valid; else what was said before stays in force.
    fn read_config(&mut self) {
        match self.wanted.effective_config() {
            Ok(config) => {
                self.config_error = None;
                // What the program logs is part of it, so it is made anew; that loses no packet.
                self.is_loaded &= config == self.config;
                self.config = config;
            }
            Err(error) => self.config_error = Some(format!("{error:#}")),
        }
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
