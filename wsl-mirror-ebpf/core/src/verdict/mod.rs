//! The verdict: one pure function, compiled into the program and into the host's tests.
//!
//! - [`decide`]: the order of the steps, and the first of them: what the conntrack entry says.
//! - `kernel`: what the verdict asks of the kernel.
//! - `entry`: what conntrack's entry of a flow means.
//! - `listener`, `known_flow`: the socket that would receive a flow, and the flow's record.
//! - `request`: what is left to the port's policy, and the policy itself.
//! - `way`: the plain way, and delivery by `lo`.
//! - `decision`: what becomes of a packet.

mod decision;
mod entry;
mod kernel;
mod known_flow;
mod listener;
mod request;
mod way;

pub use decision::Decision;
pub use entry::{Conntrack, Entry, status, tcp_state};
pub use kernel::Kernel;
pub use known_flow::KnownFlow;
pub use listener::Listener;
use request::{Admission, Answer, Request, admit};
pub use way::Way;

use crate::abi::{Carrier, FlowState, Reason};
use crate::packet::{Packet, Role};

/// Decides about a packet, and makes its flow's conntrack entry if it is to be steered.
///
/// In three steps, each of which the program has once: what does the packet's entry say; does the policy grant what is
/// left to it; act. With the second and the third in every branch of the first, the kernel's verifier would follow each
/// copy, on every way to it.
#[inline(always)]
pub fn decide<K: Kernel>(packet: &Packet, kernel: &mut K) -> Decision {
    let answer = match kernel.conntrack(packet) {
        Conntrack::Failed => Answer::plain(Reason::LookupFailed),
        Conntrack::Missing => without_entry(packet, kernel),
        Conntrack::Found(entry) => with_entry(packet, entry, kernel),
    };
    let request = match answer {
        Answer::Ask(request) => request.hidden_by(kernel),
        Answer::Decided(decision) => return decision,
    };
    let by_lo = if request.has(Request::GRANTED) {
        request.has(Request::BY_LO)
    } else {
        match admit(packet, kernel) {
            Admission::Admitted(listener) if request.has(Request::CONTINUE) => {
                request.has(Request::BY_LO) || listener.by_lo
            }
            Admission::Admitted(listener) => {
                request.has(Request::BY_LO) || kernel.way(packet).goes_by_lo(listener)
            }
            Admission::Refused(reason) => return request.refused(packet, reason, kernel),
        }
    };
    if request.has(Request::CONTINUE) {
        return go_on(packet, request, by_lo, kernel);
    }
    if request.has(Request::REPLACE) && kernel.expire(packet).is_err() {
        return Decision::plain(Reason::ExpireFailed);
    }
    match kernel.create(packet) {
        Err(failed) => Decision::plain(failed),
        Ok(()) => match kernel.remember(packet, FlowState::new(Carrier::Listener, by_lo)) {
            Ok(()) => Decision { reason: request.reason(), by_lo },
            Err(()) => Decision { reason: Reason::Unremembered, by_lo },
        },
    }
}

#[inline(always)]
fn without_entry<K: Kernel>(packet: &Packet, kernel: &mut K) -> Answer {
    match packet.role {
        // If the engine no longer carries the flow, the next datagram finds it caught, and heals it; unless a rule
        // drops it before any other rule can catch it.
        Role::Datagram if is_engines(packet, kernel) => match kernel.way(packet) {
            Way::ByLo => Answer::Ask(Request::new(Reason::New, Request::BY_LO)),
            _ => Answer::plain(Reason::EngineNat),
        },
        Role::Syn | Role::Datagram => Answer::Ask(Request::new(Reason::New, 0)),
        // The entry is lost (conntrack -F), or never was. Conntrack would take up the flow as a new one, and an
        // engine's rule would catch it: that breaks a flow whose socket is on this machine.
        Role::Ack => {
            if !kernel.has_connection(packet) {
                return Answer::plain(Reason::NoSocket);
            }
            let flow = kernel.known_flow(packet);
            if !matches!(flow.carrier, Some(Carrier::Listener)) {
                return Answer::Ask(Request::new(Reason::PickedUp, 0));
            }
            // The flow goes on as it began, whatever its policy is by now.
            Answer::Ask(Request::granted(Reason::PickedUp, kernel.way(packet).goes_on_by_lo(flow), 0))
        }
        Role::Other => Answer::Decided(along_with_its_flow(packet, Reason::Stray, kernel)),
    }
}

/// Decides about a packet whose entry leaves nothing to decide, and which conntrack does not count with its flow.
///
/// Either the packet ends a flow whose entry is lost (conntrack -F); or it goes in the direction of replies, since the
/// server was the first to speak after that. In a flow that is delivered by `lo`, a rule drops whatever is not.
#[inline(always)]
fn along_with_its_flow<K: Kernel>(packet: &Packet, plain: Reason, kernel: &mut K) -> Decision {
    let way = kernel.way(packet);
    if matches!(way, Way::Plain | Way::Open) {
        return Decision::plain(plain);
    }
    let flow = kernel.known_flow(packet);
    if !way.goes_on_by_lo(flow) {
        return Decision::plain(plain);
    }
    let is_within_linux = matches!(flow.carrier, Some(Carrier::Linux));
    Decision { reason: if is_within_linux { Reason::Local } else { Reason::Established }, by_lo: true }
}

#[inline(always)]
fn with_entry<K: Kernel>(packet: &Packet, entry: Entry, kernel: &mut K) -> Answer {
    if let Some(reason) = entry.replaceable(packet) {
        if !matches!(packet.role, Role::Ack) {
            return Answer::Ask(Request::new(reason, Request::REPLACE));
        }
        // An engine's DNAT is wrong for a flow that was steered when it began and still has its socket here.
        let flow = kernel.known_flow(packet);
        if !matches!(flow.carrier, Some(Carrier::Listener)) || !kernel.has_connection(packet) {
            return Answer::plain(Reason::EngineNat);
        }
        let by_lo = kernel.way(packet).goes_on_by_lo(flow);
        return Answer::Ask(Request::granted(reason, by_lo, Request::REPLACE));
    }
    if entry.is_reply {
        // Of a translated flow these are replies indeed.
        return if entry.is_translated() {
            Answer::plain(Reason::Reply)
        } else {
            Answer::Decided(along_with_its_flow(packet, Reason::Reply, kernel))
        };
    }
    if entry.is_translated() {
        // A datagram does not tell whether its flow has just begun. Without this record, a flow whose entry was
        // lost (conntrack -F) would be steered away from the engine that carries it.
        if matches!(packet.role, Role::Datagram) && !is_engines(packet, kernel) {
            // Without room in the map the flow has no record.
            let _ = kernel.remember(packet, FlowState::new(Carrier::Engine, false));
        }
        return Answer::plain(Reason::EngineNat);
    }
    // A flow that is neither ours nor an engine's is within Linux, or older than we are.
    let plain = if entry.is_ours() { Reason::Established } else { Reason::NotOurs };
    match kernel.way(packet) {
        Way::Plain => Answer::plain(plain),
        Way::Open if !matches!(packet.role, Role::Syn) => Answer::plain(plain),
        way => look_closer(packet, entry, way, kernel),
    }
}

#[inline(always)]
fn is_engines<K: Kernel>(packet: &Packet, kernel: &mut K) -> bool {
    matches!(kernel.known_flow(packet).carrier, Some(Carrier::Engine))
}

/// A packet of a flow with an entry that stays, where there are two ways.
#[inline(always)]
fn look_closer<K: Kernel>(packet: &Packet, entry: Entry, way: Way, kernel: &mut K) -> Answer {
    let is_ours = entry.is_ours();
    let plain = if is_ours { Reason::Established } else { Reason::NotOurs };
    let flow = kernel.known_flow(packet);
    // Of a flow within Linux nobody sees the end, so the record may be an earlier one's: only the very SYN
    // that went by lo goes there again without a question, and only datagrams of a flow that has been answered.
    let is_of_this_flow = is_ours
        || match packet.role {
            Role::Syn => is_same_syn(packet, flow),
            Role::Datagram => entry.status & status::SEEN_REPLY != 0,
            Role::Ack | Role::Other => true,
        };
    if flow.by_lo && is_of_this_flow {
        let reason = if is_ours { Reason::Established } else { Reason::Local };
        return Answer::Decided(Decision { reason, by_lo: true });
    }
    // A flow that goes on goes its way, whatever is known by now. Only where that was forgotten the listener is asked;
    // of datagrams within Linux it never was noted.
    let goes_on = match packet.role {
        Role::Syn => is_ours && entry.tcp_state != tcp_state::NONE,
        Role::Ack | Role::Other => true,
        Role::Datagram => is_ours,
    };
    if goes_on && flow.carrier.is_some() {
        if !matches!(way, Way::ByLo) {
            return Answer::plain(plain);
        }
        // By now a rule is known that drops what goes the plain way. No policy ends a connection.
        if is_ours && matches!(packet.role, Role::Ack | Role::Other) {
            return Answer::Ask(Request::granted(plain, true, Request::CONTINUE));
        }
    }
    // Of ours, conntrack has seen no packet so far, and yet this is the second: between us and conntrack is nothing but
    // the raw table, and what hangs on the interface behind us. Of a flow within Linux, whose entry was made on its way
    // out, the same SYN comes once more: nobody answered. If it was the listener whose queue is full, its flows go by
    // lo from now on, and nothing else changes.
    let is_repeated = matches!(packet.role, Role::Syn)
        && if is_ours { entry.tcp_state == tcp_state::NONE } else { is_same_syn(packet, flow) };
    let repeated = if is_repeated { Request::REPEATED_SYN } else { 0 };
    // An unanswered datagram may be of a flow by lo all the same.
    let by_lo = matches!(way, Way::ByLo) || flow.by_lo && matches!(packet.role, Role::Datagram);
    let bits = Request::CONTINUE | repeated | if by_lo { Request::BY_LO } else { 0 };
    Answer::Ask(Request::new(plain, bits))
}

/// Whether this SYN of a flow within Linux has come by before.
#[inline(always)]
const fn is_same_syn(packet: &Packet, flow: KnownFlow) -> bool {
    matches!(flow.carrier, Some(Carrier::Linux)) && flow.sequence == packet.sequence
}

/// A flow that goes on to a listener that is to be steered. It goes by `lo` if its request or its listener says so, or
/// if it is found out now that it has to.
#[inline(always)]
fn go_on<K: Kernel>(packet: &Packet, request: Request, known_by_lo: bool, kernel: &mut K) -> Decision {
    let learns = request.has(Request::REPEATED_SYN) && !known_by_lo;
    if learns {
        kernel.learn(packet);
    }
    let by_lo = known_by_lo || learns;
    let is_ours = matches!(request.reason(), Reason::Established);
    if by_lo || matches!(packet.role, Role::Syn) {
        let carrier = if is_ours { Carrier::Listener } else { Carrier::Linux };
        // No room: then the next packet asks the listener.
        let _ = kernel.remember(packet, FlowState::new(carrier, by_lo).with_sequence(packet.sequence));
    }
    let reason = match (learns, by_lo, is_ours) {
        (true, ..) => Reason::Learned,
        (_, true, false) => Reason::Local,
        _ => request.reason(),
    };
    Decision { reason, by_lo }
}
