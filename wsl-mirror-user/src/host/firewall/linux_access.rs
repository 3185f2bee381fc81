//! Whether rules of the user's let Linux' own clients reach a port.

use std::net::Ipv4Addr;

use wsl_mirror_core::abi::Protocol;

use super::packet::{Applies, Flow, Goes, Packet, all_apply};
use super::path::{Drops, Path};
use super::ruleset::{Base, Chain, Condition, Effect, Kind, Rule, Ruleset, Verdict};
use super::{Firewall, INTERFACE};

/// The interfaces by which a Linux client's packet to 127.0.0.1 may leave and come in again.
///
/// In mirrored mode it leaves for Windows and comes back, both by loopback0.
const LOOPBACKS: [&str; 2] = ["lo", INTERFACE];

/// The rules that may drop packets of Linux' own clients: chains of OUTPUT and INPUT that do not translate.
///
/// INPUT counts on loopback0 as well as on `lo`. A firewall that accepts `lo` alone (ufw, firewalld) thus closes every port
/// that it does not open: it drops a Linux client's packet where Windows returns it. Rules of PREROUTING and FORWARD do
/// not count. Nor do rules of a packet filter that no installed program can print.
#[derive(Clone, Debug)]
pub struct LinuxAccess {
    reading: Reading,
    clients: Clients,
    output: Path,
    input: Path,
}

/// How well the rules are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Whole,
    /// Reading a part has failed. Any port may be closed.
    Incomplete,
}

/// Whether Linux' own clients may reach a port, and the container behind it as translated clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No rule is against it. Rules that a translated client meets just the same stay in force and do not count.
    Open,
    /// A rule may drop what a client sends to the port, or what a translated one sends to the container.
    Closed,
}

/// Packets of a translated client.
#[derive(Clone, Copy, Debug)]
pub struct Translated<'a> {
    pub container: (Ipv4Addr, u16),
    pub source: Ipv4Addr,
    /// The interface by which they leave.
    pub bridge: &'a str,
}

impl LinuxAccess {
    /// Reads the rules.
    pub fn of(firewall: &Firewall) -> Self {
        let reading = if firewall.has_gaps { Reading::Incomplete } else { Reading::Whole };
        let Firewall { ruleset, .. } = firewall;
        let is_on = |hook: &str, base: &Base| base.hook == hook && base.kind != Kind::Nat;
        let clients = Clients::under(ruleset);
        Self {
            reading,
            clients,
            output: Path::compile(
                ruleset,
                |base| is_on("output", base),
                |chain, rule| !is_kube_firewalls(chain, rule) && clients.may_meet_on_output(rule),
            ),
            input: Path::compile(
                ruleset,
                |base| is_on("input", base),
                |chain, rule| !is_kube_firewalls(chain, rule) && clients.may_meet_on_input(rule),
            ),
        }
    }

    /// Whether Linux' clients may reach this port of 127.0.0.1 and the container behind it.
    ///
    /// Conditions that are not understood may hold. So may those on a client's user, group, cgroup and mark.
    pub fn to(&self, protocol: Protocol, port: u16, translated: &Translated<'_>) -> Access {
        let is_closed = self.reading == Reading::Incomplete
            || self.input.has_drops() && self.input_drops(protocol, port)
            || self.output.has_drops() && self.output_drops(protocol, port, translated);
        if is_closed { Access::Closed } else { Access::Open }
    }

    /// No packet of a translated client meets INPUT. Every drop there counts.
    fn input_drops(&self, protocol: Protocol, port: u16) -> bool {
        LOOPBACKS.iter().any(|interface| {
            self.input.drops_of(self.clients.coming_in(interface, protocol, Some(port))) != Drops::default()
        })
    }

    /// A rule that drops the client's packet and the translated one alike stays in force by itself.
    fn output_drops(&self, protocol: Protocol, port: u16, translated: &Translated<'_>) -> bool {
        let drops = self.output.drops_of(self.clients.translated(translated, protocol));
        drops.has_narrow
            || LOOPBACKS.iter().any(|interface| {
                self.output.drops_of(self.clients.leaving(interface, protocol, Some(port))) != drops
            })
    }
}

/// The packets of Linux' own clients: each the first of its flow.
#[derive(Clone, Copy, Debug)]
struct Clients {
    flow: Flow,
}

impl Clients {
    /// Conntrack knows such a packet as new, unless a rule may take it out of conntrack.
    fn under(ruleset: &Ruleset) -> Self {
        let mut rules = ruleset.chains.iter().filter(|chain| chain.sees_ipv4).flat_map(|chain| &chain.rules);
        let is_untracked = rules.any(|rule| rule.effect == Some(Effect::Untracks));
        Self { flow: if is_untracked { Flow::Any } else { Flow::New } }
    }

    /// To 127.0.0.1, as it leaves.
    fn leaving(self, interface: &str, protocol: Protocol, port: Option<u16>) -> Packet<'_> {
        Packet {
            hook: "output",
            in_interface: None,
            out_interface: Some(interface),
            source: u32::from(Ipv4Addr::LOCALHOST),
            destination: u32::from(Ipv4Addr::LOCALHOST),
            protocol: protocol as u8,
            port,
            goes: Goes::Here,
            flow: self.flow,
        }
    }

    /// The same, as it comes in again.
    fn coming_in(self, interface: &str, protocol: Protocol, port: Option<u16>) -> Packet<'_> {
        Packet {
            hook: "input",
            in_interface: Some(interface),
            out_interface: None,
            ..self.leaving(interface, protocol, port)
        }
    }

    /// To the container, as it leaves.
    fn translated<'a>(self, translated: &Translated<'a>, protocol: Protocol) -> Packet<'a> {
        let (container, port) = translated.container;
        Packet {
            source: u32::from(translated.source),
            destination: u32::from(container),
            goes: Goes::Elsewhere,
            ..self.leaving(translated.bridge, protocol, Some(port))
        }
    }

    /// Whether a rule of OUTPUT may be for a packet to any port and container.
    fn may_meet_on_output(self, rule: &Rule) -> bool {
        let is_known =
            |one: &&Condition| matches!(one, Condition::Protocol(..) | Condition::FlowState { .. });
        Protocol::ALL.iter().any(|protocol| {
            let conditions = rule.conditions.iter().filter(is_known);
            all_apply(conditions, self.leaving(INTERFACE, *protocol, None)) != Applies::No
        })
    }

    /// Whether a rule of INPUT may be for a packet to any port.
    fn may_meet_on_input(self, rule: &Rule) -> bool {
        Protocol::ALL.iter().any(|protocol| {
            LOOPBACKS.iter().any(|interface| {
                all_apply(&rule.conditions, self.coming_in(interface, *protocol, None)) != Applies::No
            })
        })
    }
}

/// Whether this is the drop of Kubernetes' for packets that its own NAT rules have marked: those to services that have
/// no endpoint.
fn is_kube_firewalls(chain: &Chain, rule: &Rule) -> bool {
    chain.name == "KUBE-FIREWALL"
        && rule.verdict == Verdict::Drop
        && rule.conditions[..] == [Condition::Unknown]
}

#[cfg(test)]
mod tests;
