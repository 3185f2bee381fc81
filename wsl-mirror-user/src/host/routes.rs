//! Ways to containers, as the kernel would route them.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use netlink_packet_core::{Emitable as _, NLM_F_ACK, NLM_F_REQUEST, Parseable as _};
use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rustix::io::Errno;

use super::interface;
use super::netlink::{Conversation, errno};

/// `RTM_GETROUTE` (`include/uapi/linux/rtnetlink.h`).
const GET_ROUTE: u16 = 26;

/// The way from this machine to an address on a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The address that the kernel would send from.
    pub source: Ipv4Addr,
    /// Index of the interface that the kernel would send by.
    pub ifindex: u32,
}

/// Asks the kernel for ways, for each address once.
pub struct Ways {
    conversation: Conversation,
    /// Interfaces that no way may lead by.
    excluded: Vec<u32>,
    known: HashMap<Ipv4Addr, Option<Way>>,
}

impl Ways {
    /// Ways that do not lead by `lo` nor by this interface.
    pub fn begin(except: &str) -> Result<Self> {
        Ok(Self {
            conversation: Conversation::begin(NETLINK_ROUTE).context("cannot talk to rtnetlink")?,
            excluded: ["lo", except].into_iter().filter_map(interface::index).collect(),
            known: HashMap::new(),
        })
    }

    /// The way to this address, if this machine has an interface on its network.
    pub fn to(&mut self, address: Ipv4Addr) -> Result<Option<Way>> {
        if let Some(known) = self.known.get(&address) {
            return Ok(*known);
        }
        let way = if address.is_loopback() || address.is_unspecified() { None } else { self.ask(address)? };
        let way = way.filter(|way| !self.excluded.contains(&way.ifindex));
        self.known.insert(address, way);
        Ok(way)
    }

    fn ask(&mut self, address: Ipv4Addr) -> Result<Option<Way>> {
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        question.header.destination_prefix_length = 32;
        question.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        let mut body = vec![0; question.buffer_len()];
        question.emit(&mut body);
        let mut way = None;
        let answered = self.conversation.ask(GET_ROUTE, NLM_F_REQUEST | NLM_F_ACK, &body, |answer| {
            way = way_of(&RouteMessage::parse(answer)?);
            Ok(())
        });
        match answered {
            Ok(()) => Ok(way),
            Err(error) if is_unreachable(&error) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot ask for the route to {address}")),
        }
    }
}

/// What the kernel says where there is no route, and where a rule or route forbids one.
fn is_unreachable(error: &anyhow::Error) -> bool {
    let unreachable = [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL];
    errno(error).is_some_and(|number| unreachable.contains(&number))
}

/// The way that an answer describes. A gateway, or any type but unicast, makes it none.
fn way_of(route: &RouteMessage) -> Option<Way> {
    let (mut source, mut ifindex) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                return None;
            }
            _ => {}
        }
    }
    (route.header.kind == RouteType::Unicast)
        .then_some(Way { source: source?, ifindex: ifindex.filter(|index| *index != 0)? })
        .filter(|way| !way.source.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = kind;
        route.attributes = attributes;
        route
    }

    fn on_link() -> Vec<RouteAttribute> {
        let source = RouteAddress::Inet(Ipv4Addr::new(172, 17, 0, 1));
        vec![RouteAttribute::Oif(5), RouteAttribute::PrefSource(source)]
    }

    #[test]
    fn only_a_directly_connected_network_has_a_way() {
        let way = Way { source: Ipv4Addr::new(172, 17, 0, 1), ifindex: 5 };
        assert_eq!(way_of(&route(RouteType::Unicast, on_link())), Some(way));
        for kind in [RouteType::Local, RouteType::Broadcast, RouteType::BlackHole, RouteType::Multicast] {
            assert_eq!(way_of(&route(kind, on_link())), None, "{kind:?}");
        }
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(way_of(&route(RouteType::Unicast, [on_link(), vec![gateway]].concat())), None);
        let loopback = RouteAttribute::PrefSource(RouteAddress::Inet(Ipv4Addr::LOCALHOST));
        let attributes = vec![RouteAttribute::Oif(5), loopback];
        assert_eq!(way_of(&route(RouteType::Unicast, attributes)), None);
        assert_eq!(way_of(&route(RouteType::Unicast, vec![RouteAttribute::Oif(5)])), None);
    }

    #[test]
    fn this_machine_has_no_way_to_itself() {
        let mut ways = Ways::begin("loopback0").unwrap();
        for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9), Ipv4Addr::UNSPECIFIED] {
            assert_eq!(ways.to(address).unwrap(), None);
        }
        assert_eq!(ways.to(Ipv4Addr::BROADCAST).unwrap(), None);
    }
}
