//! Egress: the border that the alias never crosses.
//!
//! A reply of a carried flow leaves conntrack with the alias as its source, and the program puts 127.0.0.1 there. Any
//! other TCP or UDP packet with this source is a forgery or a loop: without the border a container with default rights
//! could reach every service on Windows' own 127.0.0.1.

use crate::abi::{Protocol, Reason};
use crate::packet::{Bytes as _, ETH_P_IP, ETHERNET, FRAGMENT_OFFSET, Frame, IPV4_MIN, transport_offset};

/// A TCP or UDP packet that is about to leave with the alias as its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Offset of the transport header in the frame, in bytes.
    pub transport: u16,
    /// A later fragment: it has no transport header.
    pub is_later_fragment: bool,
}

/// What conntrack says about an outgoing packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A reply of a flow whose destination is translated, as it is of carried ones.
    Reply,
    /// Anything else.
    Other,
}

/// Reads a frame whose headers are readable. None: it is not TCP or UDP from the alias, and passes.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, alias: [u8; 4]) -> Option<Outgoing> {
    let ethernet = frame.at(0, ETHERNET)?;
    if ethernet.u16(12) != ETH_P_IP {
        return None;
    }
    let ip = frame.at(ETHERNET, IPV4_MIN)?;
    if ip.four(12) != alias {
        return None;
    }
    let protocol = Protocol::from_number(ip.u8(9))?;
    Some(Outgoing {
        protocol,
        transport: transport_offset(ip.u8(0)),
        is_later_fragment: ip.u16(6) & FRAGMENT_OFFSET != 0,
    })
}

/// Decides about a packet from the alias.
#[inline(always)]
pub const fn decide(standing: Standing) -> Reason {
    match standing {
        Standing::Reply => Reason::Returned,
        Standing::Other => Reason::NoReply,
    }
}
