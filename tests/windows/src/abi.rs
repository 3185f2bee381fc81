//! What the programs of the lab's Windows and the lab share: keys and values of the maps.
//!
//! Ports and addresses are in host order.
#![cfg_attr(not(test), no_std)]

pub mod checksum;

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// 127.0.0.1.
pub const LOOPBACK: u32 = 0x7f00_0001;
/// The source of frames that Windows reflects to the guest; arbitrary in this model.
pub const REFLECTION_MAC: [u8; 6] = [0x00, 0x15, 0x5d, 0x23, 0x23, 0x30];

/// The link-layer address of the neighbour on the LAN; arbitrary.
pub const NEIGHBOUR_MAC: [u8; 6] = [0x02, 0x4c, 0x41, 0x4e, 0x00, 0x14];

/// How many ranges of refused binds [`Settings`] holds.
pub const REFUSED: usize = 4;

/// The map `SETTINGS`: the one element is what holds for all ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The cookie of the guest's network namespace. While it is 0, a bind of the port [`Self::probe`] sets it: before
    /// Linux 5.14 a process cannot ask for it.
    pub guest: u64,
    /// The address that guest and Windows share on the LAN.
    pub lan: u32,
    /// The first and the last port of the block that Windows has leased to the guest.
    pub leased: [u16; 2],
    /// The port whose bind tells the guest's network namespace.
    pub probe: u32,
    /// 1: Windows drops segments of a TCP flow whose handshake it has seen only half.
    pub watches_handshakes: u32,
    /// Ranges, first and last port, in which Windows refuses binds; 0 to 0 is none.
    pub refused: [[u16; 2]; REFUSED],
}

/// A key of the maps `PORTS` and `RULES`.
pub const fn port_key(protocol: u8, port: u16) -> u32 {
    (protocol as u32) << 16 | port as u32
}

/// Protocol and port of a [`port_key`].
pub const fn port_of(key: u32) -> (u8, u16) {
    let bytes = key.to_be_bytes();
    (bytes[1], u16::from_be_bytes([bytes[2], bytes[3]]))
}

/// A value of the map `PORTS`: the guest has bound the port, and Windows knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// When a process bound it last (`bpf_ktime_get_ns`, the clock `CLOCK_MONOTONIC`).
    pub at: u64,
}

/// Bits of a value of the map `RULES`: what holds for one port.
pub mod rule {
    /// Windows keeps what comes for the port to itself, even if a Linux program binds it.
    pub const NEVER_SENT: u32 = 1;
    /// The guest's tracker does not report binds of the port: Windows does not know of them.
    pub const NOT_REPORTED: u32 = 1 << 1;
    /// Windows sends what comes for the port to the guest, bound or not. The model's, for tests.
    pub const ALWAYS_SENT: u32 = 1 << 2;
    /// What comes for the port goes to both. That each gets a copy is the model's.
    pub const SHARED: u32 = 1 << 3;
    /// A program on Windows has the port: Windows refuses the guest's binds.
    pub const TAKEN: u32 = 1 << 4;
    /// The Hyper-V firewall drops what goes to the guest on the port, from the guest itself too (the model's).
    pub const BLOCKED: u32 = 1 << 5;
    /// The Hyper-V firewall drops what the guest sends to the port, to itself too (the model's).
    pub const BLOCKED_OUT: u32 = 1 << 6;
}

/// A key of the map `FLOWS`: a flow that Windows knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    /// The port of the side that began.
    pub client: u16,
    /// The port of the other side.
    pub server: u16,
    /// TCP or UDP.
    pub protocol: u8,
    /// 1 by the LAN address, 0 by 127.0.0.1.
    pub lan: u8,
    /// Zero.
    pub pad: u16,
}

/// Bits of a value of the map `FLOWS`: what Windows has seen of a TCP flow's handshake.
pub mod handshake {
    /// The SYN.
    pub const SYN: u8 = 1;
    /// The SYN+ACK.
    pub const SYN_ACK: u8 = 1 << 1;
}

/// A key of the map `FRAGMENTS`: a datagram that travels in fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentKey {
    /// The source address.
    pub source: u32,
    /// The destination address.
    pub destination: u32,
    /// The identification of the IPv4 header.
    pub id: u16,
    /// The protocol.
    pub protocol: u8,
    /// 1 from the guest, 0 from Windows.
    pub from_guest: u8,
}

/// Places in the map `COUNTERS`: packets that Windows dropped, by reason.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// From the guest: neither the beginning of a flow nor of a known one.
    UnknownFlow,
    /// To the guest: the Hyper-V firewall.
    Firewall,
    /// From the guest to itself, on a port that Windows never sends.
    NeverSent,
    /// The programs themselves failed.
    Failed,
    /// From Windows to `::1`, on a port of the guest's.
    Ipv6,
}

/// How many places `COUNTERS` has.
pub const COUNTERS: u32 = 5;

/// Bits of [`Garble::kinds`]: TCP packets to the guest whose destination port Windows garbles.
pub mod garbled {
    /// SYN without ACK.
    pub const SYN: u32 = 1;
    /// SYN with ACK.
    pub const SYN_ACK: u32 = 1 << 1;
    /// RST.
    pub const RST: u32 = 1 << 2;
}

/// The map `GARBLE`: which ports Windows garbles, and how many it has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Garble {
    /// Bits of [`garbled`].
    pub kinds: u32,
    /// How many of a thousand such packets.
    pub per_mille: u32,
    /// How many such packets there were.
    pub seen: u64,
    /// How many of them Windows garbled.
    pub garbled: u64,
}

/// The map `WIRE`: interfaces of Windows on the LAN; zero without a neighbour.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// The index of the NIC whose other end is the guest's `eth0`.
    pub lan_nic: u32,
    /// The index of the NIC whose other end is the neighbour's.
    pub wire_nic: u32,
}

#[cfg(feature = "user")]
mod pod {
    use super::{Bound, FlowKey, Garble, Settings, Wire};

    // SAFETY: `repr(C)`, integers only, no padding, every bit pattern is a value.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Bound {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Garble {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Wire {}
}
