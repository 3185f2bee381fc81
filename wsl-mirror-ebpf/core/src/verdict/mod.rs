//! The verdict on ingress: one pure function, compiled into the program and into the host's tests.
//!
//! - [`decide`]: the order of the steps.
//! - `kernel`: what the verdict asks of the kernel.
//! - `entry`: what a conntrack entry means.
//! - `lookup`: the entries of a packet, and what they decide.
//! - `listener`: the socket that would receive a flow.
//! - `request`: a flow that begins, and what was found in its way.
//! - `admission`: the policies, and the way of a flow.
//! - `begin`: the entry of a flow.

mod admission;
mod begin;
mod entry;
mod kernel;
mod listener;
mod lookup;
mod request;

use admission::admit;
use begin::begin;
pub use entry::{Conntrack, End, Entry, TupleKind, status, tcp_state};
pub use kernel::Kernel;
pub use listener::Listener;
use lookup::{Answer, entries};

use crate::abi::Reason;
use crate::packet::{Packet, Role};

/// Decides about a packet, and makes its flow's conntrack entry if the flow begins and is carried.
///
/// The program sends the packet to the alias if the reason's verdict is `steer`, from the source alias too if it is
/// `direct`, and leaves it untouched otherwise.
///
/// In three steps, each of which the program has once: the entries of the packet; the policy; the new entry. With the
/// second and the third in every branch of the first, the kernel's verifier would follow each copy.
#[inline(always)]
pub fn decide<K: Kernel>(packet: &Packet, kernel: &mut K) -> Reason {
    // Only these may begin a flow. One question for all three steps: the kernel's verifier would follow each copy.
    let listener = match packet.role {
        Role::Syn | Role::Datagram => kernel.listener(packet),
        Role::Ack | Role::Other => Listener::NONE,
    };
    let request = match entries(packet, &listener, kernel) {
        Answer::Decided(reason) => return reason,
        Answer::Begins(request) => request.hidden_by(kernel),
    };
    let packet = &kernel.hidden(packet);
    let listener = kernel.hidden_listener(&listener);
    match admit(packet, request, &listener, kernel) {
        Ok(way) => begin(&kernel.hidden(packet), request, way, &listener.target, kernel),
        Err(refused) => refused,
    }
}
