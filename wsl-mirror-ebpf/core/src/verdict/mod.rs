//! The verdict on ingress: one pure function, compiled into the program and into the host's tests.
//!
//! - [`decide`]: the order of the steps.
//! - `kernel`: what the verdict asks of the kernel.
//! - `entry`: what a conntrack entry means.
//! - `listener`: the socket that would receive a flow.
//! - `request`: a flow that begins, and the policy that admits it.

mod entry;
mod kernel;
mod listener;
mod request;

pub use entry::{Conntrack, Destination, Entry, status, tcp_state};
pub use kernel::Kernel;
pub use listener::Listener;
use request::{Request, admit};

use crate::abi::Reason;
use crate::packet::{Packet, Role};

/// Decides about a packet, and makes its flow's conntrack entry if the flow begins and is carried.
///
/// The program sends the packet to the alias if the reason's verdict is `steer`, and leaves it untouched otherwise.
///
/// In three steps, each of which the program has once: the entries of the packet; the policy; the new entry. With the
/// second and the third in every branch of the first, the kernel's verifier would follow each copy.
#[inline(always)]
pub fn decide<K: Kernel>(packet: &Packet, kernel: &mut K) -> Reason {
    let request = match entries(packet, kernel) {
        Answer::Decided(reason) => return reason,
        Answer::Begins(request) => request.hidden_by(kernel),
    };
    if let Err(refused) = admit(packet, kernel) {
        return refused;
    }
    begin(packet, request, kernel)
}

/// What the conntrack entries say about a packet.
enum Answer {
    /// They alone decide.
    Decided(Reason),
    /// A flow begins: the policy decides.
    Begins(Request),
}

#[inline(always)]
fn entries<K: Kernel>(packet: &Packet, kernel: &mut K) -> Answer {
    let request = match on_alias(packet, kernel) {
        Answer::Decided(reason) => return Answer::Decided(reason),
        Answer::Begins(request) => request.hidden_by(kernel),
    };
    on_own_tuple(packet, request, kernel)
}

/// The entry of the packet's tuple on the alias. It carries the flow, or another one does, or none.
#[inline(always)]
fn on_alias<K: Kernel>(packet: &Packet, kernel: &mut K) -> Answer {
    // A flow to a port that never had a carried one has no such entry: it costs no lookup. A SYN may still meet a stray.
    if !matches!(packet.role, Role::Syn) && !kernel.was_carried(packet) {
        return match packet.role {
            Role::Datagram => Answer::Begins(Request::new(Reason::New, 0)),
            Role::Syn | Role::Ack | Role::Other => Answer::Decided(Reason::NeverCarried),
        };
    }
    let entry = match kernel.conntrack(packet, Destination::Alias) {
        Conntrack::Failed => return Answer::Decided(Reason::LookupFailed),
        Conntrack::Missing => return Answer::Begins(Request::new(Reason::New, 0)),
        Conntrack::Found(entry) => entry,
    };
    let is_expirable = entry.is_expirable(packet.role, Destination::Alias);
    match (entry.carries(), is_expirable) {
        (true, false) => Answer::Decided(Reason::Established),
        (true, true) => Answer::Begins(Request::new(Reason::Reused, Request::EXPIRE_ON_ALIAS)),
        // The kernel made it from a packet that had no business there.
        (false, true) => Answer::Begins(Request::new(Reason::New, Request::EXPIRE_ON_ALIAS)),
        (false, false) => Answer::Begins(Request::new(Reason::New, 0)),
    }
}

/// The entry of the packet's own tuple, where no entry on the alias carries the flow.
#[inline(always)]
fn on_own_tuple<K: Kernel>(packet: &Packet, request: Request, kernel: &mut K) -> Answer {
    let entry = match kernel.conntrack(packet, Destination::Own) {
        Conntrack::Failed => return Answer::Decided(Reason::LookupFailed),
        Conntrack::Missing => {
            return match packet.role {
                Role::Syn | Role::Datagram => Answer::Begins(request),
                Role::Ack => Answer::Decided(pick_up(packet, kernel)),
                Role::Other => Answer::Decided(Reason::Stray),
            };
        }
        Conntrack::Found(entry) => entry,
    };
    if entry.is_expirable(packet.role, Destination::Own) {
        return Answer::Begins(request.with(Reason::Reused, Request::EXPIRE_OWN));
    }
    if entry.is_reply {
        return Answer::Decided(Reason::Reply);
    }
    if !entry.is_translated() {
        return Answer::Decided(Reason::NotOurs);
    }
    match packet.role {
        // The flow is no better off with the engine's entry, and ours stands beside it.
        Role::Syn | Role::Datagram if entry.is_caught() => Answer::Begins(request),
        Role::Syn | Role::Datagram | Role::Ack | Role::Other => Answer::Decided(Reason::EngineNat),
    }
}

/// A plain ACK without any entry: the flow has lost its entry (conntrack -F), or never had one here.
///
/// Conntrack would take up the flow as a new one, and an engine's rule would catch it: that breaks a flow whose socket
/// is on this machine. An entry on the alias is no remedy. Conntrack knows no window scale of a flow that it picks up,
/// calls fast packets invalid, and NAT translates no invalid packet.
#[inline(always)]
fn pick_up<K: Kernel>(packet: &Packet, kernel: &mut K) -> Reason {
    if !kernel.has_connection(packet) {
        return Reason::NoSocket;
    }
    match kernel.create(packet, Destination::Own) {
        Ok(()) => Reason::PickedUp,
        Err(failed) => failed,
    }
}

/// A flow that begins and is admitted gets its entry on the alias.
#[inline(always)]
fn begin<K: Kernel>(packet: &Packet, request: Request, kernel: &mut K) -> Reason {
    if request.has(Request::EXPIRE_ON_ALIAS) && kernel.expire(packet, Destination::Alias).is_err() {
        return Reason::ExpireFailed;
    }
    if request.has(Request::EXPIRE_OWN) && kernel.expire(packet, Destination::Own).is_err() {
        return Reason::ExpireFailed;
    }
    match kernel.create(packet, Destination::Alias) {
        Ok(()) => request.reason(),
        // Another CPU may have been first; or a stray entry is in the way of a datagram, for which nobody looked.
        Err(Reason::InsertFailed) => match kernel.conntrack(packet, Destination::Alias) {
            Conntrack::Found(entry) if entry.carries() => Reason::Established,
            Conntrack::Found(entry) if entry.is_expirable(packet.role, Destination::Alias) => {
                // The next packet of the flow finds it gone.
                let _ = kernel.expire(packet, Destination::Alias);
                Reason::InsertFailed
            }
            _ => Reason::InsertFailed,
        },
        Err(failed) => failed,
    }
}
