//! What packet filters consist of, whichever tool printed them: chains, rules, conditions, verdicts.

use std::ops::RangeInclusive;

use wsl_mirror_core::abi::{PortRule, Protocol};

use crate::host::marks::MarkUse;

/// Rules whose comment begins like this are about packets that we have marked: that they name our bits does not
/// make these somebody else's.
pub const ABOUT_US: &str = "wsl-mirror";

/// All chains of one or several packet filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The chains.
    pub chains: Vec<Chain>,
    /// Bits that named sets and maps of marks mention.
    pub marks: Vec<MarkUse>,
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
    /// Whether the policy is to drop.
    pub drops: bool,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What a packet has to be like.
    pub conditions: Vec<Condition>,
    /// What then happens to it.
    pub verdict: Verdict,
    /// The bits of the mark that it looks at or sets.
    pub mark_bits: u32,
    /// The bits that it copies from conntrack's mark to the packet's.
    pub restored_bits: u32,
    /// Whether it is about us ([`ABOUT_US`]).
    pub is_about_us: bool,
    /// Whether it holds a part of iptables that nft does not translate.
    pub has_xt: bool,
    /// The rule itself, or how one finds it.
    pub text: String,
}

/// What a packet has to be like. Only what `walk` needs is told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Comes in on one of these interfaces; with `*` at the end, on any whose name begins like that.
    Interface(Vec<String>, Sense),
    /// Goes to one of these addresses.
    Destination(Vec<RangeInclusive<u32>>, Sense),
    /// Comes from one of these addresses.
    Source(Vec<RangeInclusive<u32>>, Sense),
    /// Is of one of these protocols.
    Protocol(Vec<u8>, Sense),
    /// Goes to one of these ports.
    DestinationPort(Vec<RangeInclusive<u16>>, Sense),
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
    Accept,
    /// It is gone.
    Drop,
    /// It goes back to where it was jumped from.
    Return,
    /// It goes through that chain and, if nothing happens there, comes back.
    Jump(String),
    /// It goes through that chain and, if nothing happens there, to where this chain would have returned to.
    Goto(String),
}

/// Ports that are dropped unless their packets come in on `lo`, before conntrack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: RangeInclusive<u16>,
    /// Whether it is for what comes from outside, or for this interface.
    pub rule: PortRule,
    /// The rule that drops them.
    pub by: String,
}

impl Ruleset {
    /// The chains through which packets of a hook may come.
    pub fn reached_from(&self, hook: &str) -> Vec<&Chain> {
        let is_entered = |chain: &&Chain| chain.base.as_ref().is_some_and(|base| base.hook == hook);
        let mut reached: Vec<&Chain> = self.chains.iter().filter(is_entered).collect();
        let mut next = 0;
        while let Some(chain) = reached.get(next).copied() {
            next += 1;
            for rule in &chain.rules {
                if let Verdict::Jump(name) | Verdict::Goto(name) = &rule.verdict
                    && let Some(target) = self.chain(&chain.table, name)
                    && !reached.iter().any(|known| std::ptr::eq(*known, target))
                {
                    reached.push(target);
                }
            }
        }
        reached
    }

    pub fn chain(&self, table: &str, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.table == table && chain.name == name)
    }
}
