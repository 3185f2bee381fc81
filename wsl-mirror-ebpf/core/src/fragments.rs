//! Fragments: all of a datagram go the same way, and only the first one has ports.

use crate::abi::{FragmentKey, Reason};
use crate::packet::Packet;
use crate::verdict::Decision;

/// Lifetime of a datagram's record in ns: the kernel waits as long for the rest of one (`IP_FRAG_TIME`, 30 s).
pub const LIFETIME: u64 = 30_000_000_000;

/// The datagrams whose fragments are delivered by `lo`.
pub trait Datagrams {
    /// The time in ns, of a monotonic clock.
    fn now(&mut self) -> u64;
    /// When this datagram's first fragment was delivered by `lo`, by the same clock.
    fn first_delivered_at(&mut self, datagram: FragmentKey) -> Option<u64>;
    /// Records the datagram. Without room the later fragments take the plain way.
    fn remember(&mut self, datagram: FragmentKey, now: u64);
    /// Drops the record of an earlier datagram with the same identification.
    fn forget(&mut self, datagram: FragmentKey);
}

/// What becomes of a fragment without ports. It goes the way of the one that has them; if that has not come yet, the
/// plain one, which is as good: a datagram counts as received where its last fragment was.
///
/// A fragment that overtakes its first one may find what is remembered of an earlier datagram of its number: not for
/// longer than [`LIFETIME`].
#[inline(always)]
pub fn later<D: Datagrams>(datagram: FragmentKey, datagrams: &mut D) -> Decision {
    let Some(then) = datagrams.first_delivered_at(datagram) else {
        return Decision::plain(Reason::LaterFragment);
    };
    if datagrams.now().wrapping_sub(then) >= LIFETIME {
        return Decision::plain(Reason::LaterFragment);
    }
    Decision { reason: Reason::Fragment, by_lo: true }
}

/// Has the others of a datagram find out, if this packet is a first fragment, what became of it.
#[inline(always)]
pub fn first<D: Datagrams>(packet: &Packet, decision: Decision, datagrams: &mut D) {
    let Some(id) = packet.first_fragment else { return };
    let datagram = FragmentKey::new(packet.protocol, packet.client, id);
    if decision.by_lo {
        let now = datagrams.now();
        datagrams.remember(datagram, now);
    } else {
        datagrams.forget(datagram);
    }
}
