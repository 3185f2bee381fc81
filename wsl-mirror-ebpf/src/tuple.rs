//! A packet's addresses and ports, as the kernel's lookups want them.

use aya_ebpf::bindings::bpf_sock_tuple;
use wsl_mirror_core::packet::{LOCALHOST, Packet};

/// The IPv4 arm of `struct bpf_sock_tuple`: everything in network order.
#[repr(C)]
pub struct Tuple {
    source: [u8; 4],
    destination: [u8; 4],
    source_port: u16,
    destination_port: u16,
}

impl Tuple {
    /// Its size tells the kernel that it is an IPv4 tuple.
    pub const SIZE: u32 = size_of::<Self>() as u32;

    /// The packet's own.
    #[inline(always)]
    pub const fn of(packet: &Packet) -> Self {
        Self {
            source: packet.client,
            destination: LOCALHOST,
            source_port: packet.client_port.to_be(),
            destination_port: packet.server_port.to_be(),
        }
    }

    /// With the packet's ports, between these addresses.
    #[inline(always)]
    pub const fn between(packet: &Packet, source: [u8; 4], destination: [u8; 4]) -> Self {
        Self { source, destination, ..Self::of(packet) }
    }

    /// The packet's, but from port 0: no connection has that, so only a listener matches.
    #[inline(always)]
    pub const fn from_port_zero(packet: &Packet) -> Self {
        let mut tuple = Self::of(packet);
        tuple.source_port = 0;
        tuple
    }

    /// From these addresses and ports; ports in host order.
    #[inline(always)]
    pub const fn new(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1.to_be(),
            destination_port: destination.1.to_be(),
        }
    }

    /// As the kernel's calls take it.
    #[inline(always)]
    pub const fn as_mut_ptr(&mut self) -> *mut bpf_sock_tuple {
        core::ptr::from_mut(self).cast()
    }
}
