//! The rules, as they should be.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol, route::RouteProtocol};

use crate::host::routing::{LOCAL_TABLE, Rule};
use crate::loader::source_alias::PROTOCOL;

/// The last port that a rule's range can have (`fib_rule_port_range_valid`).
const PORT_MAX: u16 = u16::MAX - 1;

/// The rules, in the order in which they are made: for packets of marked sockets, and for replies to their ports.
///
/// All have priority 0: WSL's own rules of priority 1 send packets for 127.0.0.1 to Windows. They name no interface: a reply
/// that an engine's NAT translates back comes from a bridge.
pub fn rules(ports: &RangeInclusive<u16>, bit: u32) -> [Rule; 3] {
    let range = RulePortRange { start: *ports.start(), end: (*ports.end()).min(PORT_MAX) };
    let replies =
        |protocol| vec![RuleAttribute::IpProtocol(protocol), RuleAttribute::DestinationPortRange(range)];
    [
        rule(vec![RuleAttribute::FwMark(bit), RuleAttribute::FwMask(bit)]),
        rule(replies(IpProtocol::Udp)),
        // Next to the marking of sockets: a connection that begins in between goes one way by Windows, the other by `lo`.
        rule(replies(IpProtocol::Tcp)),
    ]
}

fn rule(mut attributes: Vec<RuleAttribute>) -> Rule {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.header.dst_len = 32;
    // The table's number fits the header, where the kernel tells it as well.
    message.header.table = u8::try_from(LOCAL_TABLE).unwrap_or_default();
    attributes.push(RuleAttribute::Destination(Ipv4Addr::LOCALHOST.into()));
    attributes.push(RuleAttribute::Table(LOCAL_TABLE));
    attributes.push(RuleAttribute::Priority(0));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    message.attributes = attributes;
    Rule::new(message)
}

/// Whether a rule is one of ours, for any ports and any bit, of any distribution.
pub fn is_ours(rule: &Rule) -> bool {
    rule.protocol() == Some(PROTOCOL) && rule.delivers_to() == Some(Ipv4Addr::LOCALHOST)
}
