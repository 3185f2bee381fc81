//! A flow begins: its conntrack entry.

use super::admission::Way;
use super::entry::{Conntrack, End, TupleKind};
use super::kernel::Kernel;
use super::request::Request;
use crate::abi::{DirectFlow, Reason, Service, Target};
use crate::packet::Packet;

/// Gives a flow that is admitted its entry on the alias.
///
/// What is in the way of the entry goes first: one flow never has both, a steered and a direct entry.
#[inline(always)]
pub(super) fn begin<K: Kernel>(
    packet: &Packet,
    request: Request,
    way: Way,
    target: &Target,
    kernel: &mut K,
) -> Reason {
    if request.has(Request::HELD, kernel) && way.is(Way::Steer, kernel) {
        return Reason::Established;
    }
    let end = if way.is(Way::Direct, kernel) { End::of(target) } else { End::LISTENER };
    if request.has(Request::EXPIRE_STEERED, kernel) && kernel.expire(packet, TupleKind::Steered, end).is_err()
        || request.has(Request::EXPIRE_DIRECT, kernel)
            && kernel.expire(packet, TupleKind::Direct, end).is_err()
        || request.has(Request::EXPIRE_OWN, kernel)
            && kernel.expire(packet, TupleKind::Own, End::LISTENER).is_err()
    {
        return Reason::ExpireFailed;
    }
    if way.is(Way::GiveUp, kernel) {
        return Reason::Unanswered;
    }
    if way.is(Way::Direct, kernel) {
        match direct(packet, request, target, kernel) {
            Ok(reason) => return reason,
            Err(failed) if matches!(target.service(), Service::Holder) => return failed,
            Err(_) => {}
        }
    }
    steer(packet, request, way, kernel)
}

#[inline(always)]
fn direct<K: Kernel>(
    packet: &Packet,
    request: Request,
    target: &Target,
    kernel: &mut K,
) -> Result<Reason, Reason> {
    let flow =
        DirectFlow { address: target.address, source: target.source, port: target.port, source_port: 0 };
    match kernel.create_direct(packet, flow) {
        Ok(()) if request.has(Request::REUSED, kernel) => Ok(Reason::DirectReused),
        Ok(()) => Ok(Reason::DirectNew),
        // Another CPU may have been first; or a stray entry is in the way, for which nobody looked.
        Err(Reason::InsertFailed) => match kernel.conntrack(packet, TupleKind::Direct) {
            Conntrack::Found(entry)
                if entry.carries(TupleKind::Direct) && entry.leads_to(End::of(target)) =>
            {
                Ok(Reason::DirectEstablished)
            }
            Conntrack::Found(entry)
                if entry.is_expirable(packet.role, TupleKind::Direct, End::of(target)) =>
            {
                // The next packet of the flow finds it gone.
                let _ = kernel.expire(packet, TupleKind::Direct, End::of(target));
                Err(Reason::InsertFailed)
            }
            _ => Err(Reason::InsertFailed),
        },
        Err(failed) => Err(failed),
    }
}

#[inline(always)]
fn steer<K: Kernel>(packet: &Packet, request: Request, way: Way, kernel: &mut K) -> Reason {
    if request.has(Request::BESIDE, kernel) {
        return Reason::NotOurs;
    }
    match kernel.create(packet, TupleKind::Steered) {
        Ok(()) if !way.is(Way::Steer, kernel) => Reason::Instead,
        Ok(()) if request.has(Request::REUSED, kernel) => Reason::Reused,
        Ok(()) => Reason::New,
        // Another CPU may have been first; or a stray entry is in the way of a datagram, for which nobody looked.
        Err(Reason::InsertFailed) => match kernel.conntrack(packet, TupleKind::Steered) {
            Conntrack::Found(entry) if entry.carries(TupleKind::Steered) => Reason::Established,
            Conntrack::Found(entry) if entry.is_expirable(packet.role, TupleKind::Steered, End::LISTENER) => {
                // The next packet of the flow finds it gone.
                let _ = kernel.expire(packet, TupleKind::Steered, End::LISTENER);
                Reason::InsertFailed
            }
            _ => Reason::InsertFailed,
        },
        Err(failed) => failed,
    }
}
