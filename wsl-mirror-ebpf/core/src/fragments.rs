//! Fragments on ingress: all of a datagram go to the alias or none, and only the first one has ports.

use crate::abi::{FragmentKey, Reason, Verdict};
use crate::packet::Packet;

/// Lifetime of a datagram's record in ns: the kernel waits as long for the rest of one (`IP_FRAG_TIME`, 30 s).
pub const LIFETIME: u64 = 30_000_000_000;

/// The carried datagrams that came in fragments.
pub trait Datagrams {
    /// The time in ns, of a monotonic clock.
    fn now(&mut self) -> u64;
    /// When this datagram's first fragment was carried, by the same clock.
    fn first_carried_at(&mut self, datagram: FragmentKey) -> Option<u64>;
    /// Records the datagram. Without room its later fragments pass, and the datagram is lost.
    fn remember(&mut self, datagram: FragmentKey, now: u64);
    /// Drops the record of an earlier datagram with the same identification.
    fn forget(&mut self, datagram: FragmentKey);
}

/// Decides about a fragment without ports: it follows the first one of its datagram.
///
/// A fragment that overtakes its first one cannot be decided about, and passes. It may find the record of an earlier
/// datagram with the same identification: not for longer than [`LIFETIME`].
#[inline(always)]
pub fn later<D: Datagrams>(datagram: FragmentKey, datagrams: &mut D) -> Reason {
    match datagrams.first_carried_at(datagram) {
        Some(then) if datagrams.now().wrapping_sub(then) < LIFETIME => Reason::Fragment,
        _ => Reason::LaterFragment,
    }
}

/// Records what became of a datagram, if this packet is the first fragment of one.
#[inline(always)]
pub fn first<D: Datagrams>(packet: &Packet, reason: Reason, datagrams: &mut D) {
    let Some(id) = packet.first_fragment else { return };
    let datagram = FragmentKey::new(packet.protocol, packet.client, id);
    if matches!(reason.verdict(), Verdict::Steer) {
        let now = datagrams.now();
        datagrams.remember(datagram, now);
    } else {
        datagrams.forget(datagram);
    }
}
