//! The verdict: one pure function, compiled into the program and into the host's tests.

use crate::abi::{Carrier, FlowState, Policy, Reason};
use crate::packet::{Packet, Role};

/// `IPS_*` bits of `nf_conn.status` (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
pub mod status {
    /// A reply has been seen.
    pub const SEEN_REPLY: u64 = 1 << 1;
    /// The source is translated.
    pub const SRC_NAT: u64 = 1 << 4;
    /// The destination is translated.
    pub const DST_NAT: u64 = 1 << 5;
    /// It was decided whether the source is translated, one way or the other.
    pub const SRC_NAT_DONE: u64 = 1 << 7;
    /// It was decided whether the destination is translated, one way or the other.
    pub const DST_NAT_DONE: u64 = 1 << 8;
}

/// `enum tcp_conntrack` values (`nf_conntrack_tcp.h`).
pub mod tcp_state {
    /// Just made: conntrack has seen no packet of the flow.
    pub const NONE: u8 = 0;
    /// Finished, waiting for stragglers. A new SYN restarts it.
    pub const TIME_WAIT: u8 = 7;
    /// Reset, or the last ACK was seen. Likewise.
    pub const CLOSE: u8 = 8;
}

/// What conntrack knows about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The packet goes the way of the flow's replies: the other side opened it.
    pub is_reply: bool,
    /// `IPS_*` bits.
    pub status: u64,
    /// `enum tcp_conntrack`; meaningless for UDP.
    pub tcp_state: u8,
    /// The destination is translated to an address of 127.0.0.0/8: to a program on this machine, not to a
    /// container.
    pub is_to_loopback: bool,
}

/// An answer of conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conntrack {
    /// There is no entry.
    Missing,
    /// There is one.
    Found(Entry),
    /// The lookup itself failed.
    Failed,
}

/// The socket that would receive a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// What is written about its owner.
    pub owner: Policy,
    /// Its flows are delivered by `lo`, since a rule was seen to eat the others.
    pub by_lo: bool,
}

/// What is remembered of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Who carries it.
    pub carrier: Carrier,
    /// It is delivered by `lo`.
    pub by_lo: bool,
    /// The sequence number of its first SYN, of one within Linux.
    pub sequence: u32,
}

/// Which ways there are to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Only the plain one: delivering by `lo` would lose packets on this machine, as it is now.
    Plain,
    /// Both, and nothing was delivered by `lo` to this port so far.
    Open,
    /// Both, and flows to a listener on this port were delivered by `lo`.
    Seen,
    /// By `lo`: a rule is known that drops everything else.
    ByLo,
}

impl Way {
    /// Whether a flow to this listener that begins is delivered by `lo`.
    #[inline(always)]
    const fn goes_by_lo(self, listener: Listener) -> bool {
        match self {
            Self::Plain => false,
            Self::Open | Self::Seen => listener.by_lo,
            Self::ByLo => true,
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why.
    pub reason: Reason,
    /// Whether it is delivered by `lo`.
    pub by_lo: bool,
}

impl Decision {
    const fn plain(reason: Reason) -> Self {
        Self { reason, by_lo: false }
    }
}

/// What the program asks of the kernel and does to it. Each call may fail; none may hold anything on return.
#[expect(clippy::result_unit_err, reason = "of a call that failed, the verdict needs to know only that")]
pub trait Kernel {
    /// Finds the packet's conntrack entry.
    fn conntrack(&mut self, packet: &Packet) -> Conntrack;
    /// What we remember of the packet's flow.
    fn remembered(&mut self, packet: &Packet) -> Option<Remembered>;
    /// What the user wrote about the packet's destination port.
    fn written_policy(&mut self, packet: &Packet) -> Policy;
    /// What ports get that nobody wrote about, served by whom nobody wrote about.
    fn default_policy(&mut self) -> Policy;
    /// The socket that would receive a flow that this packet begins: for TCP one in LISTEN, for UDP a bound one.
    fn listener(&mut self, packet: &Packet) -> Option<Listener>;
    /// Whether a TCP socket with exactly this packet's addresses and ports exists.
    fn has_connection(&mut self, packet: &Packet) -> bool;
    /// Which ways there are to the packet's destination port.
    fn way(&mut self, packet: &Packet) -> Way;
    /// Takes away the packet's conntrack entry if it still is of no use ([`Entry::replaceable`]).
    fn expire(&mut self, packet: &Packet) -> Result<(), ()>;
    /// Makes a conntrack entry for the flow whose destination NAT is already done, to where it goes anyway.
    fn create(&mut self, packet: &Packet) -> Result<(), Reason>;
    /// Remembers the packet's flow; of one that is delivered by `lo` also that the port has seen such a one.
    fn remember(&mut self, packet: &Packet, flow: FlowState) -> Result<(), ()>;
    /// Has the packet's listener remember that its flows are to be delivered by `lo`.
    fn learn(&mut self, packet: &Packet);
    /// Forgets the flow.
    fn forget(&mut self, packet: &Packet);
}

/// Decides about a packet, and makes its flow's conntrack entry if it is to be steered.
#[inline(always)]
pub fn decide<K: Kernel>(packet: &Packet, kernel: &mut K) -> Decision {
    match kernel.conntrack(packet) {
        Conntrack::Failed => Decision::plain(Reason::LookupFailed),
        Conntrack::Missing => without_entry(packet, kernel),
        Conntrack::Found(entry) => with_entry(packet, entry, kernel),
    }
}

#[inline(always)]
fn with_entry<K: Kernel>(packet: &Packet, entry: Entry, kernel: &mut K) -> Decision {
    if let Some(reason) = entry.replaceable(packet) {
        let wanted = match packet.role {
            Role::Ack => carried_by_us_for_certain(packet, kernel).ok_or(Reason::EngineNat),
            _ => begin(packet, kernel).map_err(|reason| leave(packet, reason, kernel)),
        };
        return match wanted {
            Err(reason) => Decision::plain(reason),
            Ok(_) if kernel.expire(packet).is_err() => Decision::plain(Reason::ExpireFailed),
            Ok(by_lo) => create(packet, reason, by_lo, kernel),
        };
    }
    if entry.is_reply {
        return Decision::plain(Reason::Reply);
    }
    if entry.status & status::DST_NAT != 0 {
        // A datagram does not tell whether its flow has just begun. Without this note, one whose entry was
        // lost (conntrack -F) would be steered away from the engine that carries it.
        if matches!(packet.role, Role::Datagram) && !is_engines(packet, kernel) {
            // No room: then it is not remembered.
            let _ = kernel.remember(packet, FlowState::new(Carrier::Engine, false));
        }
        return Decision::plain(Reason::EngineNat);
    }
    // What is neither ours nor an engine's is within Linux, or older than we are.
    let is_ours = entry.is_ours();
    let goes_on = if is_ours { Reason::Established } else { Reason::NotOurs };
    match kernel.way(packet) {
        Way::Plain => Decision::plain(goes_on),
        Way::Open if !matches!(packet.role, Role::Syn) => Decision::plain(goes_on),
        way => look_closer(packet, entry, way, is_ours, kernel),
    }
}

/// A packet of a flow with an entry that stays, where there are two ways.
#[inline(always)]
fn look_closer<K: Kernel>(
    packet: &Packet,
    entry: Entry,
    way: Way,
    is_ours: bool,
    kernel: &mut K,
) -> Decision {
    let plain = Decision::plain(if is_ours { Reason::Established } else { Reason::NotOurs });
    let by_lo = Decision { reason: if is_ours { Reason::Established } else { Reason::Local }, by_lo: true };
    let flow = kernel.remembered(packet);
    if flow.is_some_and(|flow| flow.by_lo) {
        return by_lo;
    }
    // A flow that goes on goes its way, whatever is known by now. Only where that was forgotten the listener is asked;
    // of datagrams within Linux it never was noted.
    let goes_on = match packet.role {
        Role::Syn => is_ours && entry.tcp_state != tcp_state::NONE,
        Role::Ack | Role::Other => true,
        Role::Datagram => is_ours,
    };
    if goes_on && flow.is_some() {
        return plain;
    }
    let Ok(listener) = admit(packet, kernel) else { return plain };
    let wants_lo = way.goes_by_lo(listener);
    // Of ours, conntrack has seen no packet so far, and yet this is the second: between us and conntrack is nothing but
    // the raw table, and what hangs on the interface behind us. Of a flow within Linux, whose entry was made on its way
    // out, the same SYN comes once more: nobody answered. If it was the listener whose queue is full, its flows go by
    // lo from now on, and nothing else changes.
    let is_lost = matches!(packet.role, Role::Syn)
        && if is_ours {
            entry.tcp_state == tcp_state::NONE
        } else {
            flow.is_some_and(|flow| {
                matches!(flow.carrier, Carrier::Linux) && flow.sequence == packet.sequence
            })
        };
    if is_lost && !wants_lo {
        kernel.learn(packet);
    }
    if is_lost || wants_lo || matches!(packet.role, Role::Syn) {
        // No room: then the next packet asks the listener.
        let _ = kernel.remember(packet, FlowState::seen(is_ours, packet.sequence, is_lost || wants_lo));
    }
    match (is_lost, wants_lo) {
        (true, false) => Decision { reason: Reason::Learned, by_lo: true },
        (_, true) => by_lo,
        (false, false) => plain,
    }
}

impl Entry {
    /// Why the packet's flow needs a new entry in this one's place, if it does: because it begins; or because it
    /// is one of ours that an engine's rule caught in its midst, its entry having been flushed after we had seen
    /// it and before the stack did.
    ///
    /// Nothing wider than this may ever be taken away: it would end established flows that engines carry.
    #[inline(always)]
    pub const fn replaceable(&self, packet: &Packet) -> Option<Reason> {
        match packet.role {
            Role::Syn if self.is_finished() => Some(Reason::Reused),
            Role::Syn | Role::Datagram if self.is_caught() && !self.is_reply => Some(Reason::Healed),
            Role::Ack if self.is_caught() && !self.is_reply => Some(Reason::PickedUp),
            _ => None,
        }
    }

    /// Whether we made this entry, in whatever run. In ours the destination is decided and the source never is:
    /// an entry that stands in the table already is left as it is (`nf_nat_setup_info`), and ours stands there
    /// from the start. Of any other entry both are decided before it gets there, on the flow's first way through
    /// the stack; or neither, where nobody does NAT at all.
    #[inline(always)]
    const fn is_ours(&self) -> bool {
        self.status & (status::SRC_NAT_DONE | status::DST_NAT_DONE) == status::DST_NAT_DONE
    }

    /// Whether the TCP flow of this entry is over. A SYN then begins another one: conntrack throws an entry in
    /// `TIME_WAIT` away, whichever side opened it, and starts over with a fresh one that engines' rules catch
    /// (`nf_conntrack_tcp_packet`, "Attempt to reopen a closed/aborted connection"); to one in CLOSE that the
    /// other side opened, the SYN is invalid.
    #[inline(always)]
    const fn is_finished(&self) -> bool {
        matches!(self.tcp_state, tcp_state::TIME_WAIT | tcp_state::CLOSE)
    }

    /// Whether an engine's DNAT caught the flow and it cannot work: no answer came, and no source NAT is in
    /// place, so the container sees 127.0.0.1 and would answer itself. Engines that need no help (Podman,
    /// Docker without its proxy) masquerade such flows; and a program on this machine, to which a rule may
    /// redirect a port, need not answer at all.
    #[inline(always)]
    const fn is_caught(&self) -> bool {
        self.status & (status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY) == status::DST_NAT
            && !self.is_to_loopback
    }
}

/// Whether the flow that this segment belongs to was steered when it began, and still has its socket here: then an
/// engine's DNAT of it is wrong for certain. Says whether it goes by `lo`.
#[inline(always)]
fn carried_by_us_for_certain<K: Kernel>(packet: &Packet, kernel: &mut K) -> Option<bool> {
    let flow = kernel.remembered(packet)?;
    if !matches!(flow.carrier, Carrier::Listener) || !kernel.has_connection(packet) {
        return None;
    }
    Some(flow.by_lo && !matches!(kernel.way(packet), Way::Plain))
}

#[inline(always)]
fn is_engines<K: Kernel>(packet: &Packet, kernel: &mut K) -> bool {
    kernel.remembered(packet).is_some_and(|flow| matches!(flow.carrier, Carrier::Engine))
}

#[inline(always)]
fn without_entry<K: Kernel>(packet: &Packet, kernel: &mut K) -> Decision {
    match packet.role {
        // Should the engine no longer carry it, the next datagram finds it caught, and heals it.
        Role::Datagram if is_engines(packet, kernel) => Decision::plain(Reason::EngineNat),
        Role::Syn | Role::Datagram => match begin(packet, kernel) {
            Ok(by_lo) => create(packet, Reason::New, by_lo, kernel),
            Err(reason) => Decision::plain(leave(packet, reason, kernel)),
        },
        // The entry is lost (conntrack -F), or never was. Conntrack would take up the flow as a new one and
        // an engine's rule would catch it: with a socket of our own at this end that breaks it for certain.
        Role::Ack => {
            if !kernel.has_connection(packet) {
                return Decision::plain(Reason::NoSocket);
            }
            let by_lo = match kernel.remembered(packet) {
                Some(flow) if matches!(flow.carrier, Carrier::Listener) => {
                    flow.by_lo && !matches!(kernel.way(packet), Way::Plain)
                }
                _ => match begin(packet, kernel) {
                    Ok(by_lo) => by_lo,
                    Err(reason) => return Decision::plain(reason),
                },
            };
            create(packet, Reason::PickedUp, by_lo, kernel)
        }
        Role::Other => Decision::plain(Reason::Stray),
    }
}

/// Whether a flow that begins with this packet is to be steered, and if so, whether it is delivered by `lo`.
#[inline(always)]
fn begin<K: Kernel>(packet: &Packet, kernel: &mut K) -> Result<bool, Reason> {
    let listener = admit(packet, kernel)?;
    Ok(kernel.way(packet).goes_by_lo(listener))
}

/// Whether a flow that begins with this packet is to be steered, and to whom: the one place that decides about a port.
/// What is written about the port, else about who serves it, else the default.
#[inline(always)]
fn admit<K: Kernel>(packet: &Packet, kernel: &mut K) -> Result<Listener, Reason> {
    let written = kernel.written_policy(packet);
    if matches!(written, Policy::Pass) {
        return Err(Reason::Exempt);
    }
    let Some(listener) = kernel.listener(packet) else { return Err(Reason::NoListener) };
    let policy = match (written, listener.owner) {
        (Policy::Steer, _) | (_, Policy::Steer) => Policy::Steer,
        (_, Policy::Pass) => return Err(Reason::OwnerPolicy),
        (_, Policy::Unset) => kernel.default_policy(),
    };
    if matches!(policy, Policy::Steer) { Ok(listener) } else { Err(Reason::DefaultPolicy) }
}

/// Leaves a flow that begins with this packet to the stack. What we remember of an earlier flow on the same
/// addresses is not true of this one.
#[inline(always)]
fn leave<K: Kernel>(packet: &Packet, reason: Reason, kernel: &mut K) -> Reason {
    kernel.forget(packet);
    reason
}

#[inline(always)]
fn create<K: Kernel>(packet: &Packet, reason: Reason, by_lo: bool, kernel: &mut K) -> Decision {
    match kernel.create(packet) {
        Err(failed) => Decision::plain(failed),
        Ok(()) => match kernel.remember(packet, FlowState::new(Carrier::Listener, by_lo)) {
            Ok(()) => Decision { reason, by_lo },
            Err(()) => Decision { reason: Reason::Unremembered, by_lo },
        },
    }
}
