//! A packet's walk through indexed chains.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::super::packet::{Applies, Packet, all_apply};
use super::super::ruleset::{Condition, Policy, Translation};
use super::chains::{Action, DroppedBy, Entry, Path};

/// How deep chains may jump. nft's may 16 times (`NFT_JUMP_STACK_SIZE`); engines do so three times.
const DEEPEST: usize = 32;

/// All that may happen to a packet.
#[derive(Clone, Copy, Default)]
pub struct Fate {
    pub target: Target,
    pub dropped_by: DroppedBy,
    may_accept: bool,
    /// The packet may or may not have left a chain early, and its addresses, ports or interfaces play a part in it.
    has_narrow_exit: bool,
    /// The packet may reach the chain's end, or return.
    pub may_go_on: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    #[default]
    None,
    One(Ipv4Addr, u16),
    Unclear,
}

impl Fate {
    /// Whether the packet may not come back from a chain.
    fn may_leave(&self) -> bool {
        self.may_accept || self.dropped_by != DroppedBy::Nobody || self.target != Target::None
    }

    /// Adds another possible fate. Whether the packet goes on is the caller's to say.
    fn join(&mut self, other: Self) {
        self.target = match (self.target, other.target) {
            (target, Target::None) | (Target::None, target) => target,
            (one, another) if one == another => one,
            _ => Target::Unclear,
        };
        self.may_accept |= other.may_accept;
        self.has_narrow_exit |= other.has_narrow_exit;
        self.dropped_by = self.dropped_by.max(other.dropped_by);
    }
}

/// What decides whether a packet comes to a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope {
    /// Nothing that tells apart two packets of one program. Both come to the rule, or neither does.
    General,
    /// Also its addresses, ports or interfaces, or conditions that are not understood.
    Narrow,
}

impl Scope {
    fn of(conditions: &[Condition]) -> Self {
        let is_general = |condition: &Condition| {
            matches!(condition, Condition::Protocol(..) | Condition::FlowState { .. } | Condition::Sender)
        };
        if conditions.iter().all(is_general) { Self::General } else { Self::Narrow }
    }

    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::General, Self::General) => Self::General,
            _ => Self::Narrow,
        }
    }
}

/// The rules and policies that may drop a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Those of general scope: each by the numbers of its chain and step. A policy's step is the greatest number.
    pub general: BTreeSet<(usize, usize)>,
    /// Whether one of narrow scope is among them.
    pub has_narrow: bool,
}

impl Path {
    /// The packet's fate behind all base chains.
    pub fn fate_of(&self, packet: Packet<'_>) -> Fate {
        Walk::new(self, packet).through_all()
    }

    /// The rules and policies that may drop the packet.
    pub fn drops_of(&self, packet: Packet<'_>) -> Drops {
        let mut walk = Walk::new(self, packet);
        walk.through_all();
        walk.drops
    }
}

/// A packet's way through the chains.
pub struct Walk<'a> {
    path: &'a Path,
    packet: Packet<'a>,
    /// The fates in chains that were walked: the same packet meets the same one each time.
    fates: HashMap<(usize, Scope), Fate>,
    pub drops: Drops,
}

impl<'a> Walk<'a> {
    pub fn new(path: &'a Path, packet: Packet<'a>) -> Self {
        Self { path, packet, fates: HashMap::new(), drops: Drops::default() }
    }

    /// Goes through every base chain. Gives the fate behind them.
    pub fn through_all(&mut self) -> Fate {
        let mut all = Fate::default();
        let path = self.path;
        // The kernel calls base chains of one priority in the order of their making. No tool prints that order.
        for together in path.entries.chunk_by(|one, another| one.priority == another.priority) {
            let mut may_go_on = true;
            for entry in together {
                let fate = self.enter(*entry);
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

    fn enter(&mut self, entry: Entry) -> Fate {
        let fate = self.go(entry.chain, Scope::General, 0);
        // Also a packet that returns from a base chain, or from a chain that one goes to, meets the policy.
        if entry.policy == Policy::Accept || !fate.may_go_on {
            return fate;
        }
        let scope = if fate.has_narrow_exit { Scope::Narrow } else { Scope::General };
        self.note_drop(entry.chain, usize::MAX, scope);
        Fate { dropped_by: fate.dropped_by.max(DroppedBy::User), may_go_on: false, ..fate }
    }

    fn go(&mut self, number: usize, scope: Scope, depth: usize) -> Fate {
        if let Some(known) = self.fates.get(&(number, scope)) {
            return *known;
        }
        // The kernel refuses chains that jump back to themselves, and such deep ones.
        let unknown = Fate {
            target: Target::Unclear,
            may_accept: true,
            has_narrow_exit: true,
            may_go_on: true,
            ..Fate::default()
        };
        if depth >= DEEPEST {
            self.drops.has_narrow = true;
            return unknown;
        }
        self.fates.insert((number, scope), unknown);
        let fate = self.walk(number, scope, depth);
        self.fates.insert((number, scope), fate);
        fate
    }

    fn walk(&mut self, number: usize, scope: Scope, depth: usize) -> Fate {
        let mut all = Fate { may_go_on: true, ..Fate::default() };
        let (path, port) = (self.path, self.packet.port.unwrap_or_default());
        let mut may_have_returned = false;
        for (at, step) in path.chains.get(number).into_iter().flat_map(|chain| chain.for_port(port)) {
            #[cfg(test)]
            path.looked_at.update(|count| count + 1);
            let applies = all_apply(&step.conditions, self.packet);
            if applies == Applies::No {
                continue;
            }
            let so_far = if all.has_narrow_exit { Scope::Narrow } else { scope };
            let scope = so_far.and(Scope::of(&step.conditions));
            let mut fate = Fate::default();
            let mut may_leave = true;
            match &step.action {
                Action::Translate(translation) => fate.target = target(translation, port),
                Action::Accept => fate.may_accept = true,
                Action::Drop(by) => {
                    fate.dropped_by = *by;
                    self.note_drop(number, at, scope);
                }
                Action::Decide => {
                    fate.may_accept = true;
                    self.note_drop(number, at, scope);
                }
                Action::Return => may_have_returned = true,
                Action::Jump(chain) => {
                    fate = self.go(*chain, scope, depth + 1);
                    may_leave = fate.may_leave();
                }
                Action::Goto(chain) => {
                    fate = self.go(*chain, scope, depth + 1);
                    may_have_returned |= std::mem::take(&mut fate.may_go_on);
                }
            }
            fate.has_narrow_exit |= may_leave && applies == Applies::Maybe && scope == Scope::Narrow;
            all.join(fate);
            if applies == Applies::Yes && !fate.may_go_on {
                all.may_go_on = may_have_returned;
                break;
            }
        }
        all
    }

    fn note_drop(&mut self, chain: usize, step: usize, scope: Scope) {
        match scope {
            Scope::General => drop(self.drops.general.insert((chain, step))),
            Scope::Narrow => self.drops.has_narrow = true,
        }
    }
}

fn target(translation: &Translation, port: u16) -> Target {
    let Translation::To(address, change) = translation else { return Target::Unclear };
    // A translation to this machine itself leads to no container.
    let known =
        change.of(port).filter(|port| *port != 0 && !address.is_loopback() && !address.is_unspecified());
    known.map_or(Target::Unclear, |port| Target::One(*address, port))
}
