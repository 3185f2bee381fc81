//! From bytes to a packet that can be steered, or the reason why it cannot.

use crate::abi::{FragmentKey, Protocol, Reason};

pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4_MIN: usize = 20;
const TCP_MIN: usize = 20;
const UDP: usize = 8;
/// The most bytes of a frame that [`parse`] reads: Ethernet, IPv4 with all its options, TCP without options.
pub const MAX_HEADERS: usize = ETHERNET + 60 + TCP_MIN;

/// 127.0.0.1
pub const LOCALHOST: [u8; 4] = [127, 0, 0, 1];

pub(crate) const ETH_P_IP: u16 = 0x0800;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// IPv4's "more fragments" and fragment offset.
const MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Bytes of a frame, bounds checked.
pub trait Bytes {
    /// The byte at `offset`.
    fn u8(&self, offset: usize) -> u8;
    /// The two bytes at `offset`, big endian.
    fn u16(&self, offset: usize) -> u16;
    /// The four bytes at `offset`, in the frame's order.
    fn four(&self, offset: usize) -> [u8; 4];
}

/// A frame as it came in, from its Ethernet header on.
#[expect(clippy::len_without_is_empty, reason = "no frame is empty, and nobody would ask")]
pub trait Frame {
    /// What [`Frame::at`] hands out.
    type Bytes: Bytes;
    /// The `len` bytes from `offset` on, if they are there and can be read.
    fn at(&self, offset: usize, len: usize) -> Option<Self::Bytes>;
    /// Length of the frame in bytes, readable or not.
    fn len(&self) -> usize;
    /// Whether the kernel took a VLAN tag off the frame (`skb->vlan_tci`): then the bytes do not show it.
    fn has_vlan_tag(&self) -> bool;
    /// Whether the frame's MAC address is that of the interface (`PACKET_HOST`).
    fn is_to_us(&self) -> bool;
}

/// The flags of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;
    const KIND: u8 = Self::FIN | Self::SYN | Self::RST | Self::ACK;
}

/// What a packet can mean to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// It may begin a flow: a bare SYN (no ACK, RST, FIN).
    Syn,
    /// It belongs to a flow that has begun: a plain ACK, with or without data. Conntrack would make an entry
    /// even for the first such segment that it sees (`nf_conntrack_tcp_loose`).
    Ack,
    /// It neither begins a flow nor would conntrack make an entry for it.
    Other,
    /// UDP: each packet may be the first.
    Datagram,
}

/// An IPv4 TCP or UDP packet from 127.0.0.0/8 to 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The sender's address, 127.x.y.z, in the order in which one writes it.
    pub client: [u8; 4],
    /// The sender's port, host order.
    pub client_port: u16,
    /// The destination port, host order.
    pub server_port: u16,
    /// What it can mean to its flow.
    pub role: Role,
    /// Offset of the transport header in the frame, in bytes.
    pub transport: u16,
    /// IPv4's identification, host order, if the packet is a datagram's first fragment: the others carry no ports.
    pub first_fragment: Option<u16>,
}

/// Offset of the transport header in the frame, by the first byte of the IPv4 header.
#[inline(always)]
pub(crate) const fn transport_offset(version_ihl: u8) -> u16 {
    14 + (version_ihl & 0x0f) as u16 * 4
}

/// What a later fragment has in common with the first one of its datagram. Only of a frame that [`parse`] has called
/// [`Reason::LaterFragment`].
#[inline(always)]
pub fn fragment<F: Frame>(frame: &F) -> Option<FragmentKey> {
    let ip = frame.at(ETHERNET, IPV4_MIN)?;
    Some(FragmentKey::new(Protocol::from_number(ip.u8(9))?, ip.four(12), ip.u16(4)))
}

/// Reads a frame's headers.
///
/// Checks what it needs in order not to act on something that the stack would drop or understand otherwise
/// (`ip_rcv_core`, `nf_conntrack_tcp_packet`); checksums are left to the stack.
///
/// # Errors
/// The reason why the frame passes. [`Reason::Truncated`] also stands for bytes that are there but cannot be
/// read yet: the program then pulls them in and asks again.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Result<Packet, Reason> {
    // The kernel moves an outer VLAN tag out of the bytes before tc sees the frame (skb_vlan_untag), and the
    // packet then belongs to the VLAN's interface.
    if frame.has_vlan_tag() {
        return Err(Reason::Vlan);
    }
    let Some(ethernet) = frame.at(0, ETHERNET) else { return Err(Reason::Truncated) };
    match ethernet.u16(12) {
        ETH_P_IP => {}
        ETH_P_8021Q | ETH_P_8021AD => return Err(Reason::Vlan),
        _ => return Err(Reason::NotIpv4),
    }
    if !frame.is_to_us() {
        return Err(Reason::NotToUs);
    }
    let Some(ip) = frame.at(ETHERNET, IPV4_MIN) else { return Err(Reason::Truncated) };
    // Most foreign packets fail here: checked first, it saves half a nanosecond of each.
    let client = ip.four(12);
    if client[0] != 127 || ip.four(16) != LOCALHOST {
        return Err(Reason::NotLoopback);
    }
    let version_ihl = ip.u8(0);
    let header = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header < IPV4_MIN {
        return Err(Reason::BadHeader);
    }
    let Some(protocol) = Protocol::from_number(ip.u8(9)) else { return Err(Reason::NotTcpUdp) };
    let fragment = ip.u16(6);
    if fragment & FRAGMENT_OFFSET != 0 {
        return Err(Reason::LaterFragment);
    }
    let transport_min = match protocol {
        Protocol::Tcp => TCP_MIN,
        Protocol::Udp => UDP,
    };
    // At least IPV4_MIN, which could be read.
    let on_wire = frame.len() - ETHERNET;
    let total = match usize::from(ip.u16(2)) {
        // BIG TCP: a super-packet that is longer than the field can say carries 0 there.
        0 if on_wire > usize::from(u16::MAX) => on_wire,
        total => total,
    };
    if total < header + transport_min {
        return Err(Reason::BadHeader);
    }
    if on_wire < total {
        return Err(Reason::Truncated);
    }
    // Both begin with the ports, in 8 bytes that both have. TCP asks for its 20 below, by a constant: kernels of
    // the age of 6.1 lose track of a length that depends on the protocol.
    let Some(transport) = frame.at(ETHERNET + header, UDP) else { return Err(Reason::Truncated) };
    let (client_port, server_port) = (transport.u16(0), transport.u16(2));
    if client_port == 0 || server_port == 0 {
        return Err(Reason::PortZero);
    }
    let first_fragment = if fragment & MORE_FRAGMENTS == 0 { None } else { Some(ip.u16(4)) };
    let role = match protocol {
        Protocol::Tcp => {
            let Some(transport) = frame.at(ETHERNET + header, TCP_MIN) else { return Err(Reason::Truncated) };
            let data_offset = usize::from(transport.u8(12) >> 4) * 4;
            if data_offset < TCP_MIN || header + data_offset > total {
                return Err(Reason::BadHeader);
            }
            match transport.u8(13) & TcpFlags::KIND {
                TcpFlags::SYN => Role::Syn,
                TcpFlags::ACK => Role::Ack,
                _ => Role::Other,
            }
        }
        Protocol::Udp => {
            let length = usize::from(transport.u16(4));
            // A first fragment says the length of the whole datagram; a GSO super-packet may say that of
            // one segment.
            if length < UDP || (fragment & MORE_FRAGMENTS == 0 && header + length > total) {
                return Err(Reason::BadHeader);
            }
            Role::Datagram
        }
    };
    let transport = transport_offset(version_ihl);
    Ok(Packet { protocol, client, client_port, server_port, role, transport, first_fragment })
}
