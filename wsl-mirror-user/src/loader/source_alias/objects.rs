//! The rules and the route, as they should be.

use std::net::Ipv4Addr;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::host::routing::{Route, Rule};

/// Who made a route or a rule (`rtm_protocol`, `FRA_PROTOCOL`): the number under which any distribution knows ours again.
/// `w`, as in our tc filter's handle; not in iproute2's `rt_protos`, and above what the kernel itself uses.
pub const PROTOCOL: u8 = 0x77;

/// WSL's table of what is on Windows' loopback interface. A VPN's policy table with a default route would hide a route
/// of the main table.
pub const TABLE: u32 = 127;

/// Behind WSL's own rules of this priority: they deliver what comes from Windows for this machine.
const FIRST: u32 = 0;
/// WSL's rules of this priority look TCP and UDP up in [`TABLE`].
const LOOKUP: u32 = 1;
/// What [`TABLE`] has no route for meets the rules of this priority.
const LAST: u32 = 2;

/// The rules, in the order in which they are made.
///
/// Packets from the source alias may come from Windows alone: a forged one would get into a live direct flow. Packets to it
/// that no route takes to Windows are discarded: neither TCP nor UDP, or the route is missing.
pub fn rules(address: Ipv4Addr, interface: &str) -> [Rule; 3] {
    let source = RuleAttribute::Source(address.into());
    let goto = [source.clone(), RuleAttribute::Iifname(interface.into()), RuleAttribute::Goto(LOOKUP)];
    [
        rule(FIRST, RuleAction::Goto, goto.to_vec()),
        rule(FIRST, RuleAction::Blackhole, vec![source]),
        rule(LAST, RuleAction::Blackhole, vec![RuleAttribute::Destination(address.into())]),
    ]
}

fn rule(priority: u32, action: RuleAction, mut attributes: Vec<RuleAttribute>) -> Rule {
    let length = |is_there: bool| if is_there { 32 } else { 0 };
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = action;
    message.header.src_len = length(attributes.iter().any(|one| matches!(one, RuleAttribute::Source(_))));
    message.header.dst_len =
        length(attributes.iter().any(|one| matches!(one, RuleAttribute::Destination(_))));
    attributes.push(RuleAttribute::Priority(priority));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    message.attributes = attributes;
    Rule::new(message)
}

/// The route to Windows, by the gateway that the route to Windows' 127.0.0.1 has.
pub fn route(address: Ipv4Addr, gateway: Ipv4Addr, ifindex: u32) -> Route {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).gateway(gateway);
    let builder = builder.output_interface(ifindex).onlink().table_id(TABLE);
    Route(builder.protocol(RouteProtocol::from(PROTOCOL)).build())
}

/// Whether a route of the kernel does what this one does.
pub fn is_same(found: &Route, wanted: &Route) -> bool {
    let key = |route: &Route| {
        (route.destination(), route.table(), route.priority(), route.protocol(), route.0.header.tos)
    };
    let target = |route: &Route| (route.0.header.kind, route.gateway(), route.interface());
    key(found) == key(wanted) && target(found) == target(wanted)
}

/// The gateway of Windows' 127.0.0.1 on the interface.
pub fn gateway(routes: &[Route], ifindex: u32) -> Option<Ipv4Addr> {
    let is_here = |route: &&Route| leads_to_windows(route) && route.interface() == Some(ifindex);
    routes.iter().find(is_here)?.gateway()
}

/// Whether a route leads to Windows' 127.0.0.1.
pub fn leads_to_windows(route: &Route) -> bool {
    route.table() == TABLE
        && route.destination() == (Ipv4Addr::LOCALHOST, 32)
        && route.0.header.kind == RouteType::Unicast
}
