//! IPv4 routing, read by rtnetlink: policy route rules, routes of all tables, addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use futures_util::TryStreamExt as _;
use netlink_packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::{interface, netlink};
use crate::exit::{Exit, OrExit as _};

/// The table of this machine's own addresses (`RT_TABLE_LOCAL`).
pub const LOCAL_TABLE: u32 = 255;

/// What the kernel routes IPv4 by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// The policy route rules, in the order in which the kernel asks them.
    pub rules: Vec<Rule>,
    /// The routes of every table.
    pub routes: Vec<Route>,
    /// The addresses of this machine, each with the index of its interface.
    pub addresses: Vec<(Ipv4Addr, u32)>,
}

/// Reads all of it.
pub fn read() -> Result<Routing> {
    netlink::talk(|handle| async move {
        let rules: Vec<RuleMessage> = handle.rule().get(IpVersion::V4).execute().try_collect().await?;
        let every_route = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<RouteMessage> = handle.route().get(every_route).execute().try_collect().await?;
        let mut every_address = handle.address().get();
        every_address.message_mut().header.family = AddressFamily::Inet;
        let addresses: Vec<AddressMessage> = every_address.execute().try_collect().await?;
        Ok(Routing {
            rules: rules.into_iter().map(Rule::new).collect(),
            routes: routes.into_iter().filter(is_configured).map(Route).collect(),
            addresses: addresses.iter().filter_map(address).collect(),
        })
    })
    .or_exit(Exit::Kernel, || "cannot list the policy route rules, routes and addresses".into())
}

/// The kernel lists what it has learned as well: by an ICMP error, which anybody may forge, a way has another MTU or gateway
/// (`fib_dump_info_fnhe`). That is no route that somebody has made.
fn is_configured(route: &RouteMessage) -> bool {
    !route.header.flags.contains(RouteFlags::Cloned)
}

/// `IFA_LOCAL` is this machine's end of an address with a peer.
fn address(message: &AddressMessage) -> Option<(Ipv4Addr, u32)> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    });
    Some((local?, message.header.index))
}

/// A policy route rule. Two rules that do the same are equal, whether the kernel sent them or we made them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(RuleMessage);

impl Rule {
    /// The rule of a message, without what does not make a difference.
    pub fn new(mut message: RuleMessage) -> Self {
        // The kernel tells there whether the interface and the goto's target exist.
        message.header.flags &= RuleFlags::Invert;
        let is_lookup = message.header.action == RuleAction::ToTable;
        if !is_lookup {
            message.header.table = 0;
        }
        message.attributes.retain(|attribute| match attribute {
            RuleAttribute::Table(_) => is_lookup,
            RuleAttribute::Priority(priority) => *priority != 0,
            RuleAttribute::SuppressPrefixLen(none) | RuleAttribute::SuppressIfGroup(none) => {
                *none != u32::MAX
            }
            RuleAttribute::Other(_) => false,
            _ => true,
        });
        message.attributes.sort_by_key(Nla::kind);
        Self(message)
    }

    /// What rtnetlink sends to the kernel.
    pub const fn message(&self) -> &RuleMessage {
        &self.0
    }

    /// Who made the rule (`FRA_PROTOCOL`).
    pub fn protocol(&self) -> Option<u8> {
        self.find(|attribute| match attribute {
            RuleAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
            _ => None,
        })
    }

    /// The name of the interface from which packets come that the rule is for.
    pub fn interface(&self) -> Option<&str> {
        self.0.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Iifname(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The one address whose packets the rule delivers on this machine: a lookup of the table `local`.
    pub fn delivers_to(&self) -> Option<Ipv4Addr> {
        let is_local = self.0.header.action == RuleAction::ToTable
            && self.0.header.flags.is_empty()
            && self.table() == Some(LOCAL_TABLE)
            && self.0.header.dst_len == 32;
        self.find(|attribute| match attribute {
            RuleAttribute::Destination(IpAddr::V4(address)) => Some(*address),
            _ => None,
        })
        .filter(|_| is_local)
    }

    /// The mark of the packets that the rule is for, and the bits of it that count.
    pub fn mark(&self) -> Option<(u32, u32)> {
        let value = self.find(|attribute| match attribute {
            RuleAttribute::FwMark(value) => Some(*value),
            _ => None,
        });
        let mask = self.find(|attribute| match attribute {
            RuleAttribute::FwMask(mask) => Some(*mask),
            _ => None,
        });
        (value.is_some() || mask.is_some()).then(|| (value.unwrap_or(0), mask.unwrap_or(u32::MAX)))
    }

    /// The table in which the rule looks up.
    fn table(&self) -> Option<u32> {
        self.find(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        })
    }

    fn find<T>(&self, pick: impl Fn(&RuleAttribute) -> Option<T>) -> Option<T> {
        self.0.attributes.iter().find_map(pick)
    }
}

/// As far as `ip rule` would take it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let priority = self.find(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        write!(f, "pref {}", priority.unwrap_or(0))?;
        for attribute in &self.0.attributes {
            match attribute {
                RuleAttribute::Source(address) => write!(f, " from {address}")?,
                RuleAttribute::Destination(address) => write!(f, " to {address}")?,
                RuleAttribute::Iifname(name) => write!(f, " iif {name}")?,
                RuleAttribute::IpProtocol(protocol) => {
                    write!(f, " ipproto {}", format!("{protocol:?}").to_lowercase())?;
                }
                RuleAttribute::DestinationPortRange(ports) => {
                    write!(f, " dport {}-{}", ports.start, ports.end)?;
                }
                _ => {}
            }
        }
        if let Some((value, mask)) = self.mark() {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        let goto = self.find(|attribute| match attribute {
            RuleAttribute::Goto(target) => Some(*target),
            _ => None,
        });
        match (self.0.header.action, goto) {
            (RuleAction::Goto, Some(target)) => write!(f, " goto {target}"),
            (RuleAction::Blackhole, _) => f.write_str(" blackhole"),
            (RuleAction::ToTable, _) => match self.table() {
                Some(LOCAL_TABLE) => f.write_str(" lookup local"),
                Some(table) => write!(f, " lookup {table}"),
                None => f.write_str(" lookup"),
            },
            (action, _) => write!(f, " action {}", u8::from(action)),
        }
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route(pub RouteMessage);

impl Route {
    /// Destination and prefix length.
    pub fn destination(&self) -> (Ipv4Addr, u8) {
        let address = self.find(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
        (address.unwrap_or(Ipv4Addr::UNSPECIFIED), self.0.header.destination_prefix_length)
    }

    /// Whether the destination includes this address.
    pub fn covers(&self, address: Ipv4Addr) -> bool {
        let (destination, length) = self.destination();
        let host_bits = u32::MAX.checked_shr(length.into()).unwrap_or(0);
        (u32::from(destination) ^ u32::from(address)) & !host_bits == 0
    }

    /// The number of the table.
    pub fn table(&self) -> u32 {
        let table = self.find(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
        table.unwrap_or_else(|| self.0.header.table.into())
    }

    /// Who made the route (`rtm_protocol`).
    pub fn protocol(&self) -> u8 {
        self.0.header.protocol.into()
    }

    /// The next hop.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.find(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        })
    }

    /// The index of the interface by which packets leave.
    pub fn interface(&self) -> Option<u32> {
        self.find(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
    }

    /// The metric.
    pub fn priority(&self) -> u32 {
        let priority = self.find(|attribute| match attribute {
            RouteAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        priority.unwrap_or(0)
    }

    fn find<T>(&self, pick: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
        self.0.attributes.iter().find_map(pick)
    }
}

/// As far as `ip route` would take it.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.header.kind {
            RouteType::Unicast => {}
            RouteType::Local => f.write_str("local ")?,
            RouteType::Broadcast => f.write_str("broadcast ")?,
            RouteType::BlackHole => f.write_str("blackhole ")?,
            RouteType::Unreachable => f.write_str("unreachable ")?,
            RouteType::Prohibit => f.write_str("prohibit ")?,
            other => write!(f, "type {} ", u8::from(other))?,
        }
        let (address, length) = self.destination();
        write!(f, "{address}/{length}")?;
        if let Some(gateway) = self.gateway() {
            write!(f, " via {gateway}")?;
        }
        if let Some(name) = self.interface().and_then(interface::name) {
            write!(f, " dev {name}")?;
        }
        write!(f, " table {}", self.table())
    }
}
