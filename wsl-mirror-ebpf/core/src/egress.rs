//! Egress: the border that the alias never crosses.
//!
//! A reply of a carried flow leaves conntrack with the alias as its source, and the program puts 127.0.0.1 there. That of a
//! direct flow goes to the source alias, and the program puts 127.0.0.1 there, too. The program drops every other TCP or UDP
//! packet with the one as its source or the other as its destination: it is a forgery or a loop. Without the border a
//! container with default rights could reach every service on Windows' own 127.0.0.1. Only our own route leads packets to the
//! source alias here; without it, they would leave by the default route.

use crate::abi::{Protocol, Reason};
use crate::packet::{Bytes as _, ETH_P_IP, ETHERNET, FRAGMENT_OFFSET, Frame, IPV4_MIN, transport_offset};
use crate::verdict::TupleKind;

/// A TCP or UDP packet that is about to leave with the alias as its source, or the source alias as its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Offset of the transport header in the frame, in bytes.
    pub transport: u16,
    /// A later fragment: it has no transport header.
    pub is_later_fragment: bool,
    /// The kind of the carried flow that it may be a reply of: steered if it is from the alias, direct if it goes to the
    /// source alias, too. A packet that only goes there is a reply of neither.
    pub kind: TupleKind,
}

/// What conntrack says about an outgoing packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A reply of a carried flow of the packet's kind.
    Reply,
    /// Anything else.
    Other,
}

/// Reads a frame whose headers are readable. None: it is not TCP or UDP between these addresses, and
/// passes.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, alias: [u8; 4], source_alias: [u8; 4]) -> Option<Outgoing> {
    let ethernet = frame.at(0, ETHERNET)?;
    if ethernet.u16(12) != ETH_P_IP {
        return None;
    }
    let ip = frame.at(ETHERNET, IPV4_MIN)?;
    let is_from_alias = u32::from_ne_bytes(ip.four(12)) == u32::from_ne_bytes(alias);
    let is_to_source_alias = u32::from_ne_bytes(ip.four(16)) == u32::from_ne_bytes(source_alias);
    if !is_from_alias && !is_to_source_alias {
        return None;
    }
    let protocol = Protocol::from_number(ip.u8(9))?;
    Some(Outgoing {
        protocol,
        transport: transport_offset(ip.u8(0)),
        is_later_fragment: ip.u16(6) & FRAGMENT_OFFSET != 0,
        kind: match (is_from_alias, is_to_source_alias) {
            (true, true) => TupleKind::Direct,
            (true, false) => TupleKind::Steered,
            (false, _) => TupleKind::Own,
        },
    })
}

/// Decides about a packet from the alias or to the source alias.
#[inline(always)]
pub const fn decide(standing: Standing, kind: TupleKind) -> Reason {
    match (standing, kind) {
        (Standing::Reply, TupleKind::Direct) => Reason::DirectReturned,
        (Standing::Reply, TupleKind::Steered) => Reason::Returned,
        (Standing::Other, _) | (_, TupleKind::Own) => Reason::NoReply,
    }
}
