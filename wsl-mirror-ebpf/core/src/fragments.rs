//! Fragments on ingress: all of a datagram go to the alias or none, and only the first one has ports.

use crate::abi::{CarriedDatagram, FragmentKey, Reason, Verdict};
use crate::packet::Packet;

/// Lifetime of a datagram's record in ns: the kernel waits as long for the rest of one (`IP_FRAG_TIME`, 30 s).
pub const LIFETIME: u64 = 30_000_000_000;

/// The carried datagrams that came in fragments.
pub trait Datagrams {
    /// The time in ns, of a monotonic clock.
    fn now(&mut self) -> u64;
    /// How this datagram's first fragment was carried.
    fn record(&mut self, datagram: FragmentKey) -> Option<CarriedDatagram>;
    /// Records the datagram. Without room its later fragments pass, and the datagram is lost.
    fn remember(&mut self, datagram: FragmentKey, carried: CarriedDatagram);
    /// Drops the record of an earlier datagram with the same identification.
    fn forget(&mut self, datagram: FragmentKey);
}

/// Decides about a fragment without ports: it follows the first one of its datagram.
///
/// A fragment that overtakes its first one cannot be decided about, and passes. It may find the record of an earlier
/// datagram with the same identification: not for longer than [`LIFETIME`].
#[inline(always)]
pub fn later<D: Datagrams>(datagram: FragmentKey, datagrams: &mut D) -> Reason {
    match datagrams.record(datagram) {
        Some(carried) if datagrams.now().wrapping_sub(carried.at) < LIFETIME => {
            if carried.direct != 0 {
                Reason::DirectFragment
            } else {
                Reason::Fragment
            }
        }
        _ => Reason::LaterFragment,
    }
}

/// Records what became of a datagram, if this packet is the first fragment of one.
#[inline(always)]
pub fn first<D: Datagrams>(packet: &Packet, reason: Reason, datagrams: &mut D) {
    let Some(id) = packet.first_fragment else { return };
    let datagram = FragmentKey::new(packet.protocol, packet.client, id);
    let verdict = reason.verdict();
    if verdict.is_carried() {
        let carried =
            CarriedDatagram { at: datagrams.now(), direct: u64::from(matches!(verdict, Verdict::Direct)) };
        datagrams.remember(datagram, carried);
    } else {
        datagrams.forget(datagram);
    }
}
