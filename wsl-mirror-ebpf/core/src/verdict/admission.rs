//! Who decides about a port: what the user wrote, the path, the owner, the default.

use super::kernel::Kernel;
use super::listener::Listener;
use super::lookup::is_from_localhost;
use super::request::Request;
use crate::abi::{EngineWay, Path, Policy, Reason, Service, Target};
use crate::packet::Packet;

/// The way of a flow that begins.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Way {
    /// To the listener.
    Steer,
    /// To the container.
    Direct,
    /// To the listener, because the container cannot be reached or is avoided.
    Instead,
    /// The same, because a direct flow was unanswered a moment ago.
    Fallback,
    /// Untouched, because a direct flow was unanswered a moment ago and nobody accepts.
    GiveUp,
}

impl Way {
    /// Whether it is this way. The kernel's verifier learns nothing of the way from the test: it follows what comes behind
    /// the test only once.
    #[inline(always)]
    pub fn is<K: Kernel>(self, way: Self, kernel: &K) -> bool {
        kernel.opaque(self as u64) == way as u64
    }
}

/// What the policies say of a flow.
enum Choice {
    Steer,
    Direct,
}

/// Decides about a port: the port's own policy, its path, the global path, its owner's policy, the default.
///
/// # Errors
/// The reason for which the packet passes.
#[inline(always)]
pub(super) fn admit<K: Kernel>(
    packet: &Packet,
    request: Request,
    listener: &Listener,
    kernel: &mut K,
) -> Result<Way, Reason> {
    match choose(packet, listener, kernel)? {
        Choice::Steer => Ok(Way::Steer),
        Choice::Direct => approve(packet, request, &listener.target, kernel),
    }
}

#[inline(always)]
fn choose<K: Kernel>(packet: &Packet, listener: &Listener, kernel: &mut K) -> Result<Choice, Reason> {
    let written = kernel.port_policy(packet);
    let policy = written.effective();
    if matches!(policy, Policy::Pass) {
        return Err(Reason::Exempt);
    }
    if !listener.exists {
        return Err(Reason::NoListener);
    }
    match (policy, listener.target()) {
        (Policy::Steer, _) => return Ok(Choice::Steer),
        (Policy::Direct, None) => return Err(Reason::NoTarget),
        (Policy::Direct, Some(_)) => return Ok(Choice::Direct),
        (_, Some(target)) => {
            let path = match written.path() {
                Path::Unset => kernel.global_path(),
                path => path,
            };
            match (path, target.service(), target.engine_way()) {
                (Path::Direct, _, _) | (Path::Auto | Path::Unset, Service::Holder, EngineWay::Dropped) => {
                    return Ok(Choice::Direct);
                }
                (_, Service::Holder, _) => return Err(Reason::Holder),
                (_, Service::Proxy, _) => {}
            }
        }
        (_, None) => {}
    }
    let policy = match listener.owner {
        Policy::Unset => kernel.default_policy(),
        Policy::Pass => return Err(Reason::OwnerPolicy),
        owner => owner,
    };
    match policy {
        Policy::Steer => Ok(Choice::Steer),
        Policy::Pass | Policy::Unset | Policy::Direct => Err(Reason::DefaultPolicy),
    }
}

/// Decides whether a flow that should go direct can.
///
/// Where a proxy accepts, the flow goes to the proxy instead. Where nobody accepts it passes, and the engine's own rules
/// have it. Where those drop it too, an unanswered flow is tried again: the container may only have been busy.
#[inline(always)]
fn approve<K: Kernel>(
    packet: &Packet,
    request: Request,
    target: &Target,
    kernel: &mut K,
) -> Result<Way, Reason> {
    let is_last_resort =
        matches!((target.service(), target.engine_way()), (Service::Holder, EngineWay::Dropped));
    let was_unanswered = request.has(Request::UNANSWERED, kernel);
    if was_unanswered {
        kernel.note_unanswered(packet);
    }
    if (was_unanswered || target.is_avoided(kernel.now())) && !is_last_resort {
        return match (target.service(), was_unanswered) {
            (Service::Proxy, true) => Ok(Way::Fallback),
            (Service::Proxy, false) => Ok(Way::Instead),
            (Service::Holder, true) => Ok(Way::GiveUp),
            (Service::Holder, false) => Err(Reason::Unanswered),
        };
    }
    if is_from_localhost(packet, kernel) && kernel.is_reachable(packet, target) {
        return Ok(Way::Direct);
    }
    match target.service() {
        Service::Proxy => Ok(Way::Instead),
        Service::Holder => Err(Reason::Unreachable),
    }
}
