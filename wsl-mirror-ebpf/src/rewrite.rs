//! Writes another address into an IPv4 header, and mends the checksums.
//!
//! The kernel's helpers also know packets whose checksum is not computed yet (`CHECKSUM_PARTIAL`) and super-packets
//! (GRO, GSO).

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use wsl_mirror_core::abi::Protocol;

use crate::skb::Skb;

/// Offset of the IPv4 header's checksum in the frame.
const IP_CHECKSUM: usize = 14 + 10;
/// Size of an address, as the checksum helpers want it in their flags.
const ADDRESS: u64 = 4;

/// An address of the IPv4 header, by its offset in the frame.
#[derive(Clone, Copy)]
pub enum Address {
    Source = 14 + 12,
    Destination = 14 + 16,
}

/// The transport checksum of a packet, which covers the addresses. A later fragment has none.
#[derive(Clone, Copy)]
pub struct Checksum {
    /// Offset in the frame.
    pub offset: usize,
    /// The protocol's flags for `bpf_l4_csum_replace`.
    flags: u64,
}

impl Checksum {
    /// The checksum of a packet whose transport header is at this offset.
    #[inline(always)]
    pub fn of(protocol: Protocol, transport: u16) -> Self {
        let (offset, flags) = match protocol {
            Protocol::Tcp => (16, 0),
            // UDP's 0 means that there is no checksum: none is made, and no computed one becomes 0.
            Protocol::Udp => (6, u64::from(BPF_F_MARK_MANGLED_0)),
        };
        Self { offset: usize::from(transport) + offset, flags: u64::from(BPF_F_PSEUDO_HDR) | flags | ADDRESS }
    }
}

/// Replaces an address.
///
/// The outermost change comes first: the kernel makes the packet writable up to there, or fails and changes nothing.
/// None of the later ones can fail then.
#[inline(always)]
pub fn replace(
    skb: &Skb,
    checksum: Option<Checksum>,
    address: Address,
    old: [u8; 4],
    new: [u8; 4],
) -> Result<(), i32> {
    let context = &skb.context().skb;
    let [from, to] = [old, new].map(|address| u64::from(u32::from_ne_bytes(address)));
    if let Some(Checksum { offset, flags }) = checksum {
        context.l4_csum_replace(offset, from, to, flags).map_err(|error| error as i32)?;
    }
    context.store(address as usize, &new, 0).map_err(|error| error as i32)?;
    context.l3_csum_replace(IP_CHECKSUM, from, to, ADDRESS).map_err(|error| error as i32)
}
