//! Fragments without ports go where the first one went. Both kernels send the first one first.

use wsl_mirror_windows::FragmentKey;

use crate::maps::FRAGMENTS;
use crate::packet::Packet;
use crate::ports::Owner;

/// Which way a packet goes.
#[derive(Clone, Copy)]
pub enum Direction {
    FromWindows,
    FromGuest,
}

/// Where the first fragment of this one's datagram went.
#[inline(always)]
pub fn owner(packet: &Packet, direction: Direction) -> Option<Owner> {
    // SAFETY: a value is one aligned word.
    unsafe { FRAGMENTS.get(key(packet, direction)) }.map(|number| Owner::from_number(*number))
}

/// Has later fragments of the packet's datagram go there too.
#[inline(always)]
pub fn follow(packet: &Packet, direction: Direction, owner: Owner) {
    if packet.more_fragments {
        let _ = FRAGMENTS.insert(key(packet, direction), owner as u32, 0);
    }
}

#[inline(always)]
fn key(packet: &Packet, direction: Direction) -> FragmentKey {
    FragmentKey {
        source: packet.source,
        destination: packet.destination,
        id: packet.id,
        protocol: packet.protocol,
        from_guest: direction as u8,
    }
}
