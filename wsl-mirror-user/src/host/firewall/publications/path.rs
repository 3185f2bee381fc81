//! The way of a packet through chains, rule by rule.
//!
//! An index by destination port is made once. Each walk then looks at the rules of one port alone, in the kernel's
//! order. Reading stays linear in rules and ports.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::super::packet::{Applies, Packet, all_apply};
use super::super::ruleset::{Base, Condition, Rule, Ruleset, Sense, Translation, Verdict};

/// The index lists a rule for more ports than these once, for any port.
const FEW_PORTS: usize = 256;
/// How deep chains may jump. nft's may 16 times (`NFT_JUMP_STACK_SIZE`); engines do so three times.
const DEEPEST: usize = 32;

/// Chains that a packet goes through on one hook, one base chain after the other.
#[derive(Clone, Debug, Default)]
pub struct Path {
    chains: Vec<Indexed>,
    /// The base chains with their priorities, in the order in which the kernel calls them.
    entries: Vec<(i64, usize)>,
    /// The number of rules that all walks together looked at.
    #[cfg(test)]
    pub looked_at: std::cell::Cell<usize>,
}

/// A chain, with its rules indexed by port.
#[derive(Clone, Debug, Default)]
struct Indexed {
    steps: Vec<Step>,
    by_port: HashMap<u16, Vec<usize>>,
    for_any_port: Vec<usize>,
}

/// A rule that decides about a packet.
#[derive(Clone, Debug)]
struct Step {
    conditions: Vec<Condition>,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    Translate(Translation),
    Accept,
    Drop(DroppedBy),
    Return,
    Jump(usize),
    Goto(usize),
}

impl Path {
    /// Reads the `wanted` base chains of prerouting and the chains that they jump to. Of the rules it keeps those that
    /// `matter`.
    pub fn compile(
        ruleset: &Ruleset,
        wanted: impl Fn(&Base) -> bool,
        matter: impl Fn(&Rule) -> bool,
    ) -> Self {
        let places = ruleset.places();
        let mut bases: Vec<(i64, usize)> = Vec::new();
        for (at, chain) in ruleset.chains.iter().enumerate().filter(|(_, chain)| chain.sees_ipv4) {
            let base = chain.base.as_ref().filter(|base| base.hook == "prerouting" && wanted(base));
            bases.extend(base.map(|base| (base.priority, at)));
        }
        bases.sort_by_key(|(priority, _)| *priority);
        let mut reached = Reached::default();
        let entries = bases.into_iter().map(|(priority, at)| (priority, reached.number(at))).collect();
        let mut chains = Vec::new();
        while let Some(chain) = reached.next(chains.len()).and_then(|at| ruleset.chains.get(at)) {
            let mut indexed = Indexed::default();
            for rule in chain.rules.iter().filter(|rule| matter(rule)) {
                let target = |name: &str| places.get(&(chain.table.as_str(), name)).copied();
                let Some(action) = action(rule, |name| target(name).map(|at| reached.number(at))) else {
                    continue;
                };
                indexed.push(Step { conditions: rule.conditions.clone(), action });
            }
            chains.push(indexed);
        }
        Self {
            chains,
            entries,
            #[cfg(test)]
            looked_at: std::cell::Cell::default(),
        }
    }

    /// The packet's fate behind all base chains.
    pub fn fate_of(&self, packet: Packet<'_>) -> Fate {
        let mut walk = Walk { path: self, packet, fates: HashMap::new() };
        let mut all = Fate::default();
        // The kernel calls base chains of one priority in the order of their making. No tool prints that order.
        for together in self.entries.chunk_by(|(one, _), (another, _)| one == another) {
            let mut may_go_on = true;
            for (_, entry) in together {
                let fate = walk.go(*entry, 0);
                all.join(fate);
                // A packet that one base chain accepts goes on to the next.
                may_go_on &= fate.may_go_on || fate.may_accept;
            }
            if !may_go_on {
                return all;
            }
        }
        Fate { may_go_on: true, ..all }
    }
}

/// Chains in the order in which they were first named.
#[derive(Default)]
struct Reached {
    places: Vec<usize>,
    numbers: HashMap<usize, usize>,
}

impl Reached {
    fn number(&mut self, place: usize) -> usize {
        *self.numbers.entry(place).or_insert_with(|| {
            self.places.push(place);
            self.places.len() - 1
        })
    }

    fn next(&self, number: usize) -> Option<usize> {
        self.places.get(number).copied()
    }
}

/// The action of a rule; none if the packet just goes on.
fn action(rule: &Rule, mut number_of: impl FnMut(&str) -> Option<usize>) -> Option<Action> {
    if let Some(translation) = &rule.translation {
        return Some(Action::Translate(translation.clone()));
    }
    match &rule.verdict {
        Verdict::Continue => None,
        Verdict::End => Some(Action::Accept),
        Verdict::Drop => {
            Some(Action::Drop(if is_engines_drop(rule) { DroppedBy::Engine } else { DroppedBy::User }))
        }
        Verdict::Return => Some(Action::Return),
        // A target of iptables that is no chain (LOG, MARK) lets the packet go on.
        Verdict::Jump(name) => number_of(name).map(Action::Jump),
        Verdict::Goto(name) => number_of(name).map(Action::Goto),
    }
}

impl Indexed {
    fn push(&mut self, step: Step) {
        let number = self.steps.len();
        match few_ports(&step.conditions) {
            Some(ports) => {
                for port in ports {
                    let of_port = self.by_port.entry(port).or_default();
                    if of_port.last() != Some(&number) {
                        of_port.push(number);
                    }
                }
            }
            None => self.for_any_port.push(number),
        }
        self.steps.push(step);
    }

    /// The rules that may be for this port, in their order.
    fn for_port(&self, port: u16) -> impl Iterator<Item = &Step> {
        let mut own = self.by_port.get(&port).map_or(&[] as &[usize], Vec::as_slice);
        let mut other = self.for_any_port.as_slice();
        std::iter::from_fn(move || {
            let is_own = match (own.first(), other.first()) {
                (Some(own), Some(other)) => own < other,
                (own, _) => own.is_some(),
            };
            let from = if is_own { &mut own } else { &mut other };
            let (first, rest) = from.split_first()?;
            *from = rest;
            self.steps.get(*first)
        })
    }
}

/// The ports of a rule, if they are few.
fn few_ports(conditions: &[Condition]) -> Option<Vec<u16>> {
    let all = conditions.iter().filter_map(|condition| match condition {
        Condition::DestinationPort(ranges, Sense::Is) => Some(ranges),
        _ => None,
    });
    let few = all.filter(|ranges| ranges.iter().map(ExactSizeIterator::len).sum::<usize>() <= FEW_PORTS);
    few.map(|ranges| ranges.iter().cloned().flatten().collect()).next()
}

/// All that may happen to a packet.
#[derive(Clone, Copy, Default)]
pub struct Fate {
    pub target: Target,
    pub dropped_by: DroppedBy,
    may_accept: bool,
    /// The packet may reach the chain's end, or return.
    pub may_go_on: bool,
}

/// The author of the rule that may drop a packet; of two, the greater counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DroppedBy {
    #[default]
    Nobody,
    User,
    Engine,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    #[default]
    None,
    One(Ipv4Addr, u16),
    Unclear,
}

impl Fate {
    /// Adds another possible fate. Whether the packet goes on is the caller's to say.
    fn join(&mut self, other: Self) {
        self.target = match (self.target, other.target) {
            (target, Target::None) | (Target::None, target) => target,
            (one, another) if one == another => one,
            _ => Target::Unclear,
        };
        self.may_accept |= other.may_accept;
        self.dropped_by = self.dropped_by.max(other.dropped_by);
    }
}

/// A packet's way through the chains.
struct Walk<'a> {
    path: &'a Path,
    packet: Packet<'a>,
    /// The fates in chains that were walked: the same packet meets the same one each time.
    fates: HashMap<usize, Fate>,
}

impl Walk<'_> {
    fn go(&mut self, number: usize, depth: usize) -> Fate {
        if let Some(known) = self.fates.get(&number) {
            return *known;
        }
        // The kernel refuses chains that jump back to themselves, and such deep ones.
        let unknown = Fate { target: Target::Unclear, may_accept: true, may_go_on: true, ..Fate::default() };
        if depth >= DEEPEST {
            return unknown;
        }
        self.fates.insert(number, unknown);
        let fate = self.walk(number, depth);
        self.fates.insert(number, fate);
        fate
    }

    fn walk(&mut self, number: usize, depth: usize) -> Fate {
        let mut all = Fate { may_go_on: true, ..Fate::default() };
        let (path, port) = (self.path, self.packet.port.unwrap_or_default());
        let mut may_have_returned = false;
        for step in path.chains.get(number).into_iter().flat_map(|chain| chain.for_port(port)) {
            #[cfg(test)]
            path.looked_at.update(|count| count + 1);
            let applies = all_apply(&step.conditions, self.packet);
            if applies == Applies::No {
                continue;
            }
            let mut fate = Fate::default();
            match &step.action {
                Action::Translate(translation) => fate.target = target(translation, port),
                Action::Accept => fate.may_accept = true,
                Action::Drop(by) => fate.dropped_by = *by,
                Action::Return => may_have_returned = true,
                Action::Jump(chain) => fate = self.go(*chain, depth + 1),
                Action::Goto(chain) => {
                    fate = self.go(*chain, depth + 1);
                    may_have_returned |= std::mem::take(&mut fate.may_go_on);
                }
            }
            all.join(fate);
            if applies == Applies::Yes && !fate.may_go_on {
                all.may_go_on = may_have_returned;
                break;
            }
        }
        all
    }
}

fn target(translation: &Translation, port: u16) -> Target {
    let Translation::To(address, change) = translation else { return Target::Unclear };
    // A translation to this machine itself leads to no container.
    let known =
        change.of(port).filter(|port| *port != 0 && !address.is_loopback() && !address.is_unspecified());
    known.map_or(Target::Unclear, |port| Target::One(*address, port))
}

/// Whether this is Docker's rule (28.0 on) for a port that is published on 127.0.0.1:
/// `-p tcp -d 127.0.0.1 --dport P ! -i lo -j DROP`.
fn is_engines_drop(rule: &Rule) -> bool {
    let localhost = u32::from(Ipv4Addr::LOCALHOST);
    let (mut has_destination, mut has_interface, mut has_port) = (false, false, false);
    for condition in &rule.conditions {
        match condition {
            Condition::Destination(ranges, Sense::Is) if ranges[..] == [localhost..=localhost] => {
                has_destination = true;
            }
            Condition::InInterface(names, Sense::IsNot) if names[..] == ["lo"] => has_interface = true,
            Condition::DestinationPort(_, Sense::Is) => has_port = true,
            Condition::Protocol(_, Sense::Is) => {}
            _ => return false,
        }
    }
    has_destination && has_interface && has_port
}
