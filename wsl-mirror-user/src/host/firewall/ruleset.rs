//! What packet filters consist of, whichever tool printed them: chains, rules, conditions, verdicts.

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
    /// What then happens to the packet.
    pub verdict: Verdict,
    /// Whether it needs conntrack: while such a rule exists, the kernel has conntrack's hooks.
    pub needs_conntrack: bool,
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

/// What a packet has to be like. Only what `obstacles` needs is told apart.
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
    /// It is through with this base chain: accepted, or gone.
    End,
    /// It goes back to where it was jumped from.
    Return,
    /// It goes through that chain and, if nothing happens there, comes back.
    Jump(String),
    /// It goes through that chain and, if nothing happens there, to where this chain would have returned to.
    Goto(String),
}

impl Ruleset {
    /// The chain of this name.
    pub fn chain(&self, table: &str, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.table == table && chain.name == name)
    }
}
