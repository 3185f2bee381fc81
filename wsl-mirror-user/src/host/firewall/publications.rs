//! The publications of container engines (DNAT), and the engines' own drops before NAT.

use std::net::Ipv4Addr;

use wsl_mirror_core::abi::Protocol;

use super::packet::{Applies, Flow, Goes, Packet, all_apply};
use super::path::{DroppedBy, Path, Target};
use super::ruleset::{Base, Condition, Kind, Rule, Ruleset, Sense, Verdict};

/// Packets from Windows meet DNAT on this hook.
const HOOK: &str = "prerouting";
/// The priority of DNAT (`NF_IP_PRI_NAT_DST`).
const DNAT: i64 = -100;

/// The publications, and the drops before NAT. A rule that may or may not apply makes no publication.
#[derive(Clone, Debug)]
pub struct Publications {
    interface: String,
    nat: Path,
    before_nat: Path,
}

impl Publications {
    /// Reads the rules that apply to packets of this interface.
    pub fn of(ruleset: &Ruleset, interface: &str) -> Self {
        let is_nat = |base: &Base| base.hook == HOOK && base.kind == Kind::Nat;
        let is_before = |base: &Base| base.hook == HOOK && base.kind != Kind::Nat && base.priority < DNAT;
        Self {
            interface: interface.to_owned(),
            nat: Path::compile(ruleset, is_nat, |_, rule| {
                // The destination is the listener's address, which is not known yet.
                may_apply(rule, interface, |one| !matches!(one, Condition::Destination(..)))
                    && !is_remedy(rule)
            }),
            before_nat: Path::compile(ruleset, is_before, |_, rule| may_apply(rule, interface, |_| true)),
        }
    }

    /// The container's address and port behind the listener that is bound to this address and port.
    ///
    /// DNAT sends Windows' packets to this address there. 0.0.0.0 is a listener on any address, which Windows reaches
    /// by 127.0.0.1.
    pub fn target_of(&self, protocol: Protocol, address: Ipv4Addr, port: u16) -> Option<(Ipv4Addr, u16)> {
        let address = if address.is_unspecified() { Ipv4Addr::LOCALHOST } else { address };
        let fate = self.nat.fate_of(packet(&self.interface, address, protocol, Some(port)));
        match fate.target {
            Target::One(address, port) if fate.dropped_by == DroppedBy::Nobody && !fate.may_go_on => {
                Some((address, port))
            }
            _ => None,
        }
    }

    /// Whether an engine's own rule drops Windows' packets to 127.0.0.1 and this port before DNAT.
    ///
    /// Any other drop is the user's: that port stays closed.
    pub fn is_dropped(&self, protocol: Protocol, port: u16) -> bool {
        let packet = packet(&self.interface, Ipv4Addr::LOCALHOST, protocol, Some(port));
        let fate = self.before_nat.fate_of(packet);
        fate.dropped_by == DroppedBy::Engine && !fate.may_go_on
    }
}

/// A packet from Windows.
fn packet(interface: &str, destination: Ipv4Addr, protocol: Protocol, port: Option<u16>) -> Packet<'_> {
    Packet {
        hook: HOOK,
        in_interface: Some(interface),
        out_interface: None,
        source: u32::from(Ipv4Addr::LOCALHOST),
        destination: u32::from(destination),
        protocol: protocol as u8,
        port,
        goes: Goes::Here,
        flow: Flow::Any,
    }
}

/// Whether a rule may apply to a packet to any port of 127.0.0.1, as far as the conditions that are `asked` tell.
fn may_apply(rule: &Rule, interface: &str, asked: impl Fn(&Condition) -> bool) -> bool {
    Protocol::ALL.iter().any(|protocol| {
        let conditions = rule.conditions.iter().filter(|one| asked(one));
        all_apply(conditions, packet(interface, Ipv4Addr::LOCALHOST, *protocol, None)) != Applies::No
    })
}

/// Whether a rule exempts an interface from DNAT, as Docker's own rule for WSL does (27.3 on).
///
/// Such a rule leaves the port to docker-proxy. The port still leads to the same container.
fn is_remedy(rule: &Rule) -> bool {
    let names_interface =
        rule.conditions.iter().any(|condition| matches!(condition, Condition::InInterface(_, Sense::Is)));
    let spares = matches!(rule.verdict, Verdict::Return | Verdict::End) && rule.translation.is_none();
    names_interface && spares
}

#[cfg(test)]
mod tests;
