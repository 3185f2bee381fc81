//! Fragments of one datagram.

use core::mem::transmute;

use super::Protocol;

/// Key of `FRAGMENTS` (LRU hash): the fields that all fragments of a datagram to 127.0.0.1 share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// The sender's address, 127.x.y.z, in the order in which one writes it.
    pub client: [u8; 4],
    /// IPv4's identification, host order.
    pub id: u16,
    /// IP protocol number: 6 TCP, 17 UDP.
    pub protocol: u16,
}

impl FragmentKey {
    /// The key of this datagram.
    #[inline(always)]
    pub const fn new(protocol: Protocol, client: [u8; 4], id: u16) -> Self {
        let rest = id as u32 | (protocol as u32) << 16;
        // SAFETY: as for `PortKey`.
        unsafe { transmute::<[u32; 2], Self>([u32::from_ne_bytes(client), rest]) }
    }
}

/// Value of `FRAGMENTS`: how the first fragment of a datagram was carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CarriedDatagram {
    /// When, in ns of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// 1: direct. 0: steered.
    pub direct: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_key_is_made_as_its_fields_are_written() {
        let fragment = FragmentKey::new(Protocol::Udp, [127, 0, 0, 2], 7);
        assert_eq!(fragment, FragmentKey { client: [127, 0, 0, 2], id: 7, protocol: 17 });
    }
}
