//! What packet filters consist of, whichever tool printed them: chains, rules, conditions, verdicts.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// All chains of one or several packet filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The chains.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its table, as people look for it: `iptables-legacy raw`, `nft inet guard`. Chains of one table jump to one
    /// another.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Whether IPv4 packets on their way through this machine's IP stack go through it.
    pub sees_ipv4: bool,
    /// Where packets enter it; `None` for one that is only jumped to.
    pub base: Option<Base>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The hook, in nft's words: `prerouting`, `output`, …
    pub hook: String,
    /// The priority.
    pub priority: i64,
    /// Whether the chain translates.
    pub kind: Kind,
    /// What happens to a packet at the chain's end.
    pub policy: Policy,
}

/// The policy of a base chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The packet goes on.
    #[default]
    Accept,
    /// The packet is gone.
    Drop,
}

/// The kind of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any other.
    Filter,
    /// A nat chain: while one exists, the kernel has NAT's hooks.
    Nat,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What a packet has to be like.
    pub conditions: Vec<Condition>,
    /// What the rule makes of the packet's conntrack entry.
    pub effect: Option<Effect>,
    /// Where the rule sends the packet's flow (DNAT). It ends the packet's way through nat chains of this hook.
    pub translation: Option<Translation>,
    /// What then happens to the packet.
    pub verdict: Verdict,
    /// Whether it needs conntrack: while such a rule exists, the kernel has conntrack's hooks.
    pub needs_conntrack: bool,
    /// The source ports that masquerading gives to flows, if the rule names some.
    pub masquerade_ports: Option<RangeInclusive<u16>>,
    /// The bits of marks that the rule names.
    pub mark_bits: u32,
    /// Whether it holds a part of iptables that nft does not translate.
    pub has_xt: bool,
    /// The rule itself, or how one finds it.
    pub text: String,
}

/// What a rule makes of a packet's conntrack entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// None: `notrack`.
    Untracks,
    /// One in another zone.
    Zones,
}

/// Where a rule sends a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Translation {
    /// To one address, and to the port after this change.
    To(Ipv4Addr, PortChange),
    /// The rule alone does not tell where: one of several addresses or ports, or this machine's own.
    Unclear,
}

/// The destination port of a translated packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortChange {
    /// The port stays.
    Keep,
    /// Always this one.
    Set(u16),
    /// The first port for the packet's port `base`, the second for `base + 1`, … (`NF_NAT_RANGE_PROTO_OFFSET`)
    Shift { ports: RangeInclusive<u16>, base: u16 },
}

/// What a packet has to be like. Only what the readers of rulesets need is told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Comes in on one of these interfaces; with `*` at the end, on any whose name begins like that.
    InInterface(Vec<String>, Sense),
    /// Leaves by one of these interfaces, likewise.
    OutInterface(Vec<String>, Sense),
    /// Goes to one of these addresses.
    Destination(Vec<RangeInclusive<u32>>, Sense),
    /// Comes from one of these addresses.
    Source(Vec<RangeInclusive<u32>>, Sense),
    /// Is of one of these protocols.
    Protocol(Vec<u8>, Sense),
    /// Goes to one of these ports.
    DestinationPort(Vec<RangeInclusive<u16>>, Sense),
    /// Goes to an address of this machine.
    LocalDestination(Sense),
    /// Has a state of conntrack's. A packet may begin a flow (`new`): that alone is told apart.
    FlowState { is_for_new: bool },
    /// Is sent by certain programs: by their user, group or cgroup.
    Sender,
    /// Something else, that may be so or not.
    Unknown,
}

/// Whether a condition has to hold or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    /// `==`
    Is,
    /// `!=`, `!`
    IsNot,
}

/// What happens to a packet that a rule is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the next rule.
    #[default]
    Continue,
    /// It is through with this base chain.
    End,
    /// It is gone.
    Drop,
    /// A program decides: the packet is gone, or through with this base chain.
    Queue,
    /// It goes back to where it was jumped from.
    Return,
    /// It goes through that chain and, if nothing happens there, comes back.
    Jump(String),
    /// It goes through that chain and, if nothing happens there, to where this chain would have returned to.
    Goto(String),
}

impl Ruleset {
    /// Where each chain is, by its table and its name.
    pub fn places(&self) -> HashMap<(&str, &str), usize> {
        let mut places = HashMap::with_capacity(self.chains.len());
        for (index, chain) in self.chains.iter().enumerate() {
            places.entry((chain.table.as_str(), chain.name.as_str())).or_insert(index);
        }
        places
    }
}

impl PortChange {
    /// The new port of a packet to this one; none if the rule alone does not tell.
    pub fn of(&self, port: u16) -> Option<u16> {
        match self {
            Self::Keep => Some(port),
            Self::Set(port) => Some(*port),
            Self::Shift { ports, base } => {
                // Past the last port the kernel starts over (`nf_nat_l4proto_unique_tuple`); no engine relies on it.
                let shifted = port.checked_sub(*base).and_then(|offset| ports.start().checked_add(offset));
                shifted.filter(|port| ports.contains(port))
            }
        }
    }
}
