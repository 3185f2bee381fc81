//! Chains, each with its rules indexed by destination port.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::super::ruleset::{Base, Chain, Condition, Policy, Rule, Ruleset, Sense, Translation, Verdict};

/// The index lists a rule for more ports than these once, for any port.
const FEW_PORTS: usize = 256;

/// Chains that a packet goes through on one hook, one base chain after the other.
#[derive(Clone, Debug, Default)]
pub struct Path {
    pub(super) chains: Vec<Indexed>,
    /// The base chains, in the order in which the kernel calls them.
    pub(super) entries: Vec<Entry>,
    /// The number of rules that all walks together looked at.
    #[cfg(test)]
    pub looked_at: std::cell::Cell<usize>,
}

/// Where packets enter a base chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) priority: i64,
    pub(super) chain: usize,
    pub(super) policy: Policy,
}

/// A chain, with its rules indexed by port.
#[derive(Clone, Debug, Default)]
pub(super) struct Indexed {
    pub(super) steps: Vec<Step>,
    by_port: HashMap<u16, Vec<usize>>,
    for_any_port: Vec<usize>,
}

/// A rule that decides about a packet.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Translate(Translation),
    Accept,
    Drop(DroppedBy),
    /// Accept or drop.
    Decide,
    Return,
    Jump(usize),
    Goto(usize),
}

impl Path {
    /// Reads the `wanted` base chains of one hook and the chains that they jump to. Of the rules it keeps those that
    /// `matter`.
    pub fn compile(
        ruleset: &Ruleset,
        wanted: impl Fn(&Base) -> bool,
        matter: impl Fn(&Chain, &Rule) -> bool,
    ) -> Self {
        let places = ruleset.places();
        let mut bases: Vec<(&Base, usize)> = Vec::new();
        for (at, chain) in ruleset.chains.iter().enumerate().filter(|(_, chain)| chain.sees_ipv4) {
            let base = chain.base.as_ref().filter(|base| wanted(base));
            bases.extend(base.map(|base| (base, at)));
        }
        bases.sort_by_key(|(base, _)| base.priority);
        let mut reached = Reached::default();
        let entry = |(base, at): (&Base, usize)| Entry {
            priority: base.priority,
            chain: reached.number(at),
            policy: base.policy,
        };
        let entries = bases.into_iter().map(entry).collect();
        let mut chains = Vec::new();
        while let Some(chain) = reached.next(chains.len()).and_then(|at| ruleset.chains.get(at)) {
            let mut indexed = Indexed::default();
            for rule in chain.rules.iter().filter(|rule| matter(chain, rule)) {
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

    /// Whether a packet may be dropped at all.
    pub fn has_drops(&self) -> bool {
        let mut steps = self.chains.iter().flat_map(|chain| &chain.steps);
        steps.any(|step| matches!(step.action, Action::Drop(_) | Action::Decide))
            || self.entries.iter().any(|entry| entry.policy == Policy::Drop)
    }
}

/// The author of the rule that may drop a packet; of two, the greater counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DroppedBy {
    #[default]
    Nobody,
    User,
    Engine,
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
        Verdict::Queue => Some(Action::Decide),
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

    /// The rules that may be for this port with their numbers, in their order.
    pub(super) fn for_port(&self, port: u16) -> impl Iterator<Item = (usize, &Step)> {
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
            self.steps.get(*first).map(|step| (*first, step))
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
