//! The policy route rules that keep connections within Linux on `lo`: the programs mark clients' sockets with a bit, and
//! the rules deliver packets with the bit, and replies to the ports that Windows has leased to Linux' clients.
//!
//! The rules have to go as soon as Windows leases another block of ports: a Windows client with a port of the old block would
//! hang. So only an agent makes them. They live in the network namespace and name no interface: they belong to the
//! distribution that steers the interface to Windows.

mod bit;
mod objects;
#[cfg(test)]
pub mod tests;

use std::fmt;
use std::ops::RangeInclusive;

use anyhow::Result;

use super::instances::Instance;
use super::source_alias::{Change, TABLE, leads_to_windows, remove_all};
use crate::config::Switch;
use crate::host::firewall::Firewall;
use crate::host::routing::{self, Routing, Rule};

/// Who looks after the rules from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follower {
    /// The agent for which the state is read.
    Agent,
    /// An agent that is at work, beside a `load`.
    AgentBesideUs,
    /// Nobody: `load` alone.
    Nobody,
}

/// What packet filters say that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// The block of ports that Windows has leased to Linux' clients.
    pub leased: Option<RangeInclusive<u16>>,
    /// The bits of marks that rules name.
    pub mark_bits: u32,
}

impl From<&Firewall> for Filters {
    fn from(firewall: &Firewall) -> Self {
        Self { leased: firewall.leased_ports(), mark_bits: firewall.mark_bits() }
    }
}

/// What the rules depend on, beside the machine's routing.
#[derive(Clone, Debug)]
pub struct Conditions<'a> {
    /// `keep_on_lo` of the configuration.
    pub switch: Switch,
    /// The bits that carried packets get.
    pub carried_mark: u32,
    /// The name of the interface to Windows.
    pub interface: &'a str,
    /// Its index; 0 if there is none.
    pub ifindex: u32,
    /// What packet filters say.
    pub filters: Filters,
    /// Who looks after the rules.
    pub follower: Follower,
}

/// By what connections are kept on `lo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The clients' ports.
    pub ports: RangeInclusive<u16>,
    /// The bit of `SO_MARK`.
    pub bit: u32,
}

/// Why no connection is kept on `lo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Obstacle {
    /// The configuration says so.
    #[default]
    SwitchedOff,
    /// No agent would remove the rules in time.
    NoAgent,
    /// Table 127 does not lead to Windows by this interface.
    NoWindows(String),
    /// Which ports Windows has leased is not known.
    NoBlock,
    /// Others use every bit.
    NoBit,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchedOff => f.write_str("the configuration says keep_on_lo = \"off\""),
            Self::NoAgent => f.write_str("only `wsl-mirror run` keeps them there, and it is not at work"),
            Self::NoWindows(interface) => write!(
                f,
                "table {TABLE} has no route to 127.0.0.1 by {interface} (the link is down, or WSL is not in mirrored mode)"
            ),
            Self::NoBlock => f.write_str(
                "nft's chain WSLPOSTROUTING (table ip nat) does not name the one block of ports that Windows has leased \
                 to Linux' clients: is nft installed?",
            ),
            Self::NoBit => f.write_str("policy route rules and packet filters of others use every bit of the mark"),
        }
    }
}

/// What becomes of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    /// The three rules are there, and no other.
    Kept(Kept),
    /// There are none.
    Removed(Obstacle),
    /// They stay as they are: this distribution's agent looks after them.
    LeftToAgent,
    /// Another distribution looks after them, and no program of ours goes by them.
    LeftToAnother,
}

/// The rules that there are, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRules {
    /// In the kernel's order.
    rules: Vec<Rule>,
    goal: Goal,
}

impl Default for LocalRules {
    fn default() -> Self {
        Self { rules: Vec::new(), goal: Goal::Removed(Obstacle::default()) }
    }
}

impl LocalRules {
    /// Finds the rules, and decides. `others` are the programs of other distributions.
    pub fn find(routing: &Routing, conditions: &Conditions<'_>, others: &[Instance]) -> Self {
        let steered = others.iter().map(|other| other.ifindex);
        Self::of(routing, conditions, &steered.collect::<Vec<_>>())
    }

    fn of(routing: &Routing, conditions: &Conditions<'_>, steered_by_others: &[u32]) -> Self {
        let rules = ours(routing);
        let goal = if are_anothers(routing, steered_by_others) {
            Goal::LeftToAnother
        } else if conditions.follower == Follower::AgentBesideUs {
            Goal::LeftToAgent
        } else {
            decide(routing, conditions, &rules).map_or_else(Goal::Removed, Goal::Kept)
        };
        Self { rules, goal }
    }

    /// The steps: first those that remove rules. Before the first of them, no socket may be marked any more.
    pub fn changes(&self) -> Vec<Change> {
        match &self.goal {
            Goal::LeftToAgent | Goal::LeftToAnother => Vec::new(),
            Goal::Removed(_) => removal(&self.rules),
            Goal::Kept(kept) => {
                let rules = objects::rules(&kept.ports, kept.bit);
                // Of equal rules, the kernel deletes the first.
                let found = rules.each_ref().map(|rule| self.rules.iter().rposition(|other| other == rule));
                let excess =
                    self.rules.iter().enumerate().rev().filter(|(at, _)| !found.contains(&Some(*at)));
                let missing = rules.iter().zip(found).filter(|(_, found)| found.is_none());
                let removed = excess.map(|(_, rule)| Change::RemoveRule(rule.clone()));
                removed.chain(missing.map(|(rule, _)| Change::AddRule(rule.clone()))).collect()
            }
        }
    }

    /// `SETTINGS.lo_mark` once the changes are made; `before` is its value now.
    pub const fn lo_mark(&self, before: u32) -> u32 {
        match &self.goal {
            Goal::Kept(kept) => kept.bit,
            Goal::LeftToAgent => before,
            Goal::Removed(_) | Goal::LeftToAnother => 0,
        }
    }

    /// By what connections are kept on `lo` once the changes are made.
    pub const fn kept(&self) -> Option<&Kept> {
        match &self.goal {
            Goal::Kept(kept) => Some(kept),
            _ => None,
        }
    }

    /// Why none is.
    pub const fn obstacle(&self) -> Option<&Obstacle> {
        match &self.goal {
            Goal::Removed(obstacle) => Some(obstacle),
            _ => None,
        }
    }

    /// Whether another distribution looks after the rules.
    pub const fn are_anothers(&self) -> bool {
        matches!(self.goal, Goal::LeftToAnother)
    }
}

/// Everything that is asked of rules, for those who make them up.
#[cfg(any(test, feature = "fuzzing"))]
pub fn look_at(routing: &Routing) {
    let conditions = Conditions {
        switch: Switch::Auto,
        carried_mark: wsl_mirror_core::abi::DEFAULT_MARK,
        interface: "loopback0",
        ifindex: 1,
        filters: Filters { leased: Some(1..=u16::MAX), mark_bits: 0 },
        follower: Follower::Agent,
    };
    let rules = LocalRules::of(routing, &conditions, &[]);
    let _ = (rules.obstacle(), rules.changes().iter().map(ToString::to_string).collect::<String>());
    let _ = bit::choose(
        routing.rules.iter().find_map(Rule::mark).map(|(bit, _)| bit),
        bit::of_rules(routing.rules.iter()),
    );
}

fn decide(routing: &Routing, conditions: &Conditions<'_>, rules: &[Rule]) -> Result<Kept, Obstacle> {
    let Conditions { switch, carried_mark, interface, ifindex, filters, follower } = conditions;
    if *switch == Switch::Off {
        return Err(Obstacle::SwitchedOff);
    }
    if *follower == Follower::Nobody {
        return Err(Obstacle::NoAgent);
    }
    let leads_there = |route: &_| leads_to_windows(route) && route.interface() == Some(*ifindex);
    if *ifindex == 0 || !routing.routes.iter().any(leads_there) {
        return Err(Obstacle::NoWindows((*interface).to_owned()));
    }
    let ports = filters.leased.clone().ok_or(Obstacle::NoBlock)?;
    let of_others = bit::of_rules(routing.rules.iter().filter(|rule| !objects::is_ours(rule)));
    let live = rules.iter().find_map(Rule::mark).map(|(value, _)| value);
    let bit = bit::choose(live, carried_mark | filters.mark_bits | of_others).ok_or(Obstacle::NoBit)?;
    Ok(Kept { ports, bit })
}

/// Removes the rules, unless another distribution looks after them. An error does not stop it. Gives whether there were any.
pub fn remove(others: &[Instance]) -> Result<bool> {
    let routing = routing::read()?;
    let steered: Vec<u32> = others.iter().map(|other| other.ifindex).collect();
    if are_anothers(&routing, &steered) {
        return Ok(false);
    }
    remove_all(&removal(&ours(&routing)))
}

/// The rule for TCP's replies, which is added last, goes first.
fn removal(rules: &[Rule]) -> Vec<Change> {
    rules.iter().rev().cloned().map(Change::RemoveRule).collect()
}

fn ours(routing: &Routing) -> Vec<Rule> {
    routing.rules.iter().filter(|rule| objects::is_ours(rule)).cloned().collect()
}

/// Whether another distribution steers the interface by which table 127 leads to Windows.
fn are_anothers(routing: &Routing, steered_by_others: &[u32]) -> bool {
    let to_windows = routing.routes.iter().filter(|route| leads_to_windows(route));
    to_windows.filter_map(routing::Route::interface).any(|index| steered_by_others.contains(&index))
}
