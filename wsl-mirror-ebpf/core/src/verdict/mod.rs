//! The verdict: one pure function, compiled into the program and into the host's tests.
//!
//! - [`decide`]: the order of the steps, and the first of them: what the conntrack entry says.
//! - `entry`: what conntrack's entry of a flow means.
//! - `request`: what is left to the port's policy, and the policy itself.
//! - `way`: the plain way, and delivery by `lo`.

mod entry;
mod request;
mod way;

pub use entry::{Entry, status, tcp_state};
use request::{Admission, Answer, Request, admit};
pub use way::Way;

use crate::abi::{Carrier, FlowState, Policy, Reason};
use crate::packet::{Packet, Role};

/// An answer of conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conntrack {
    /// The flow has no entry.
    Missing,
    /// The flow has this entry.
    Found(Entry),
    /// The lookup itself failed.
    Failed,
}

/// The socket that would receive a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The policy of its owner (`OWNERS`).
    pub owner: Policy,
    /// Its flows are delivered by `lo`, since a rule was seen to eat the others.
    pub by_lo: bool,
}

/// The record of a flow (`FLOWS`), as far as it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFlow {
    /// Who carries the flow; `None` without a record.
    pub carrier: Option<Carrier>,
    /// The flow is delivered by `lo`.
    pub by_lo: bool,
    /// TCP sequence number of the first SYN, of a flow within Linux.
    pub sequence: u32,
}

impl KnownFlow {
    /// No record. Every field has a value: the verifier refuses a program that may read what was never written.
    pub const NONE: Self = Self { carrier: None, by_lo: false, sequence: 0 };
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why.
    pub reason: Reason,
    /// Whether the packet is delivered by `lo`.
    pub by_lo: bool,
}

impl Decision {
    /// The packet goes the plain way.
    #[must_use]
    #[inline(always)]
    pub const fn plain(reason: Reason) -> Self {
        Self { reason, by_lo: false }
    }
}

/// What the program asks of the kernel and does to it. Each call may fail; none may hold anything on return.
#[expect(clippy::result_unit_err, reason = "of a call that failed, the verdict needs to know only that")]
pub trait Kernel {
    /// Finds the packet's conntrack entry.
    fn conntrack(&mut self, packet: &Packet) -> Conntrack;
    /// Reads the record of the packet's flow.
    fn known_flow(&mut self, packet: &Packet) -> KnownFlow;
    /// The user's policy of the packet's destination port.
    fn port_policy(&mut self, packet: &Packet) -> Policy;
    /// The policy of ports that neither the user's nor an owner's policy covers.
    fn default_policy(&mut self) -> Policy;
    /// The socket that would receive a flow that this packet begins: for TCP one in LISTEN, for UDP a bound one.
    fn listener(&mut self, packet: &Packet) -> Option<Listener>;
    /// Whether a TCP socket with exactly this packet's addresses and ports exists.
    fn has_connection(&mut self, packet: &Packet) -> bool;
    /// Which ways there are to the packet's destination port.
    fn way(&mut self, packet: &Packet) -> Way;
    /// Removes the packet's conntrack entry if it still is of no use ([`Entry::replaceable`]).
    fn expire(&mut self, packet: &Packet) -> Result<(), ()>;
    /// Makes a conntrack entry for the flow whose destination NAT is already done, to where it goes anyway.
    fn create(&mut self, packet: &Packet) -> Result<(), Reason>;
    /// Records the packet's flow; for a flow that is delivered by `lo` also that its port has such flows.
    fn remember(&mut self, packet: &Packet, flow: FlowState) -> Result<(), ()>;
    /// Has the packet's listener remember that its flows are to be delivered by `lo`.
    fn learn(&mut self, packet: &Packet);
    /// Drops the record of the packet's flow.
    fn forget(&mut self, packet: &Packet);
    /// The same number, hidden from the kernel's verifier: else the verifier follows all later code once for each
    /// value that it knows the number can have.
    fn opaque(&self, number: u64) -> u64 {
        number
    }
}

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
