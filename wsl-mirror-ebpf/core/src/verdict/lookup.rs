//! The conntrack entries of a packet, and what they decide.

use super::entry::{Conntrack, End, TupleKind};
use super::kernel::Kernel;
use super::listener::Listener;
use super::request::Request;
use crate::abi::{Reason, Service};
use crate::packet::{LOCALHOST, Packet, Role};

/// What the conntrack entries say about a packet.
pub(super) enum Answer {
    /// They alone decide.
    Decided(Reason),
    /// A flow begins: the policies decide.
    Begins(Request),
}

/// How flows to the packet's port were carried that may be the packet's. Bits of one number, as in a [`Request`].
#[derive(Clone, Copy)]
struct Carried(u64);

impl Carried {
    const DIRECT: u64 = 1;
    const STEERED: u64 = 1 << 1;

    #[inline(always)]
    fn to<K: Kernel>(packet: &Packet, kernel: &mut K) -> Self {
        let packets = kernel.carried(packet);
        // Only 127.0.0.1 goes direct: of other clients the source alias would hide which one it was.
        let is_direct = packets.direct != 0 && is_from_localhost(packet, kernel);
        let is_steered = packets.steered != 0;
        Self(kernel.opaque(u64::from(is_direct) | u64::from(is_steered) << 1))
    }

    #[inline(always)]
    fn has<K: Kernel>(self, bit: u64, kernel: &K) -> bool {
        kernel.opaque(self.0) & bit != 0
    }

    #[inline(always)]
    fn is_none<K: Kernel>(self, kernel: &K) -> bool {
        kernel.opaque(self.0) == 0
    }
}

/// Whether the client is on exactly 127.0.0.1. The kernel's verifier learns nothing of the client's address.
#[inline(always)]
pub(super) fn is_from_localhost<K: Kernel>(packet: &Packet, kernel: &K) -> bool {
    let number = |address| u64::from(u32::from_ne_bytes(address));
    kernel.opaque(number(packet.client)) == number(LOCALHOST)
}

/// Looks the entries up that may carry the packet: a direct flow's, a steered flow's, the packet's own.
#[inline(always)]
pub(super) fn entries<K: Kernel>(packet: &Packet, listener: &Listener, kernel: &mut K) -> Answer {
    let carried = Carried::to(packet, kernel);
    // A flow to a port that never had a carried one has no such entry: it costs no lookup.
    if !matches!(packet.role, Role::Syn | Role::Datagram) && carried.is_none(kernel) {
        return Answer::Decided(Reason::NeverCarried);
    }
    let mut request = Request::new(0);
    let packet = &kernel.hidden(packet);
    let listener = &kernel.hidden_listener(listener);
    if carried.has(Carried::DIRECT, kernel) {
        request = match direct(packet, listener, kernel) {
            Answer::Decided(reason) => return Answer::Decided(reason),
            Answer::Begins(request) => request.hidden_by(kernel),
        };
    }
    let packet = &kernel.hidden(packet);
    let listener = &kernel.hidden_listener(listener);
    // A SYN may meet a stray entry that the kernel has made.
    if carried.has(Carried::STEERED, kernel) || matches!(packet.role, Role::Syn) {
        request = match steered(packet, request, listener, kernel) {
            Answer::Decided(reason) => return Answer::Decided(reason),
            Answer::Begins(request) => request.hidden_by(kernel),
        };
    }
    let packet = &kernel.hidden(packet);
    let listener = &kernel.hidden_listener(listener);
    own(packet, request, carried, listener, kernel)
}

/// The entry of the direct tuple.
#[inline(always)]
fn direct<K: Kernel>(packet: &Packet, listener: &Listener, kernel: &mut K) -> Answer {
    let none = Request::new(0);
    let entry = match kernel.conntrack(packet, TupleKind::Direct) {
        Conntrack::Failed => return Answer::Decided(Reason::LookupFailed),
        Conntrack::Missing => return Answer::Begins(none),
        Conntrack::Found(entry) => entry,
    };
    let expired = none.with(Request::EXPIRE_DIRECT);
    if !entry.carries(TupleKind::Direct) {
        return Answer::Begins(if entry.is_expirable(packet.role, TupleKind::Direct, End::LISTENER) {
            expired
        } else {
            none
        });
    }
    if matches!(packet.role, Role::Ack | Role::Other) {
        return Answer::Decided(Reason::DirectEstablished);
    }
    let is_syn = matches!(packet.role, Role::Syn);
    // Another container may have got the port meanwhile, or another port of it was published, and a third one may have the
    // address to which the entry leads. The client of a TCP flow has given it up. A UDP flow has no end: as long as the
    // client sends, its entry lives.
    let target = listener.target();
    let is_current = target.is_some_and(|target| entry.leads_to(End::of(target)));
    if !is_current {
        Answer::Begins(expired.with(Request::REUSED))
    } else if is_syn && !entry.is_answered() {
        // In CLOSE, too: conntrack puts an entry there that a REJECT rule answers for the container (`nf_ct_set_closing`).
        // On the container's own RST it removes the entry.
        Answer::Begins(expired.with(Request::UNANSWERED))
    } else if is_syn && entry.is_over() {
        Answer::Begins(expired.with(Request::REUSED))
    } else {
        Answer::Decided(Reason::DirectEstablished)
    }
}

/// The entry of the steered tuple.
#[inline(always)]
fn steered<K: Kernel>(packet: &Packet, request: Request, listener: &Listener, kernel: &mut K) -> Answer {
    let entry = match kernel.conntrack(packet, TupleKind::Steered) {
        Conntrack::Failed => return Answer::Decided(Reason::LookupFailed),
        Conntrack::Missing => return Answer::Begins(request),
        Conntrack::Found(entry) => entry,
    };
    let is_expirable = entry.is_expirable(packet.role, TupleKind::Steered, End::LISTENER);
    match (entry.carries(TupleKind::Steered), is_expirable) {
        (true, false) if matches!(packet.role, Role::Datagram) && is_held(listener) => {
            Answer::Begins(request.with(Request::EXPIRE_STEERED | Request::REUSED | Request::HELD))
        }
        (true, false) => Answer::Decided(Reason::Established),
        (true, true) => Answer::Begins(request.with(Request::EXPIRE_STEERED | Request::REUSED)),
        // The kernel made it from a packet that had no business there.
        (false, true) => Answer::Begins(request.with(Request::EXPIRE_STEERED)),
        (false, false) => Answer::Begins(request),
    }
}

/// Whether the packet's listener never accepts: a UDP flow that a proxy served is not left with it.
#[inline(always)]
fn is_held(listener: &Listener) -> bool {
    let target = listener.target();
    target.is_some_and(|target| matches!(target.service(), Service::Holder))
}

/// The entry of the packet's own tuple, where no entry on the alias carries the flow.
#[inline(always)]
fn own<K: Kernel>(
    packet: &Packet,
    request: Request,
    carried: Carried,
    listener: &Listener,
    kernel: &mut K,
) -> Answer {
    let entry = match kernel.conntrack(packet, TupleKind::Own) {
        Conntrack::Failed => return Answer::Decided(Reason::LookupFailed),
        Conntrack::Missing => {
            return match packet.role {
                Role::Syn | Role::Datagram => Answer::Begins(request),
                Role::Ack => Answer::Decided(pick_up(packet, carried, kernel)),
                Role::Other => Answer::Decided(Reason::Stray),
            };
        }
        Conntrack::Found(entry) => entry,
    };
    if entry.is_expirable(packet.role, TupleKind::Own, End::LISTENER) {
        return Answer::Begins(request.with(Request::EXPIRE_OWN | Request::REUSED));
    }
    if entry.is_reply {
        return Answer::Decided(Reason::Reply);
    }
    match packet.role {
        // The flow is no better off with the engine's entry, and ours stands beside it.
        Role::Syn | Role::Datagram if entry.is_caught() => Answer::Begins(request),
        _ if entry.is_translated() => Answer::Decided(Reason::EngineNat),
        // Datagrams that passed before the port had a container. A holder never answers them, and they may never stop.
        Role::Datagram if (!entry.is_answered() || is_held(listener)) && !kernel.has_sender(packet) => {
            Answer::Begins(request.with(Request::BESIDE))
        }
        _ => Answer::Decided(Reason::NotOurs),
    }
}

/// A plain ACK without any entry: the flow has lost its entry (conntrack -F), or never had one here.
///
/// Conntrack would take up the flow as a new one, and an engine's rule would catch it: that breaks a flow whose socket
/// is on this machine. An entry on the alias is no remedy for a steered flow. Conntrack knows no window scale of a flow that
/// it picks up, calls fast packets invalid, and NAT translates no invalid packet. A direct flow has no other way.
#[inline(always)]
fn pick_up<K: Kernel>(packet: &Packet, carried: Carried, kernel: &mut K) -> Reason {
    if kernel.has_connection(packet) {
        return match kernel.create(packet, TupleKind::Own) {
            Ok(()) => Reason::PickedUp,
            Err(failed) => failed,
        };
    }
    let flow = if carried.has(Carried::DIRECT, kernel) { kernel.recall(packet) } else { None };
    match flow {
        None => Reason::NoSocket,
        Some(flow) => match kernel.create_direct(packet, flow) {
            Ok(()) => Reason::DirectPickedUp,
            Err(failed) => failed,
        },
    }
}
