//! The verdict: one pure function, compiled into the program and into the host's tests.

use crate::abi::{FlowState, Policy, Reason};
use crate::packet::{Packet, Role};

/// `IPS_*` bits of `nf_conn.status` (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
pub mod status {
    /// A reply has been seen.
    pub const SEEN_REPLY: u64 = 1 << 1;
    /// The source is translated.
    pub const SRC_NAT: u64 = 1 << 4;
    /// The destination is translated.
    pub const DST_NAT: u64 = 1 << 5;
}

/// `enum tcp_conntrack` values that a new SYN restarts (`nf_conntrack_proto_tcp.c`).
pub mod tcp_state {
    /// Finished, waiting for stragglers.
    pub const TIME_WAIT: u8 = 7;
    /// Reset, or the last ACK was seen.
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
    /// Tells this entry from another one for the same flow ([`crate::abi::FlowState::conntrack`]).
    pub id: u32,
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

/// What the program asks of the kernel and does to it. Each call may fail; none may hold anything on return.
#[expect(clippy::result_unit_err, reason = "of a call that failed, the verdict needs to know only that")]
pub trait Kernel {
    /// Finds the packet's conntrack entry.
    fn conntrack(&mut self, packet: &Packet) -> Conntrack;
    /// The conntrack entry that we made for this flow, or [`FlowState::ENGINES`], if we remember the flow.
    fn remembered(&mut self, packet: &Packet) -> Option<u32>;
    /// What the user wrote about the packet's destination port.
    fn written_policy(&mut self, packet: &Packet) -> Policy;
    /// What ports get that nobody wrote about.
    fn default_policy(&mut self) -> Policy;
    /// Whether somebody could receive a flow that this packet begins: for TCP a socket in LISTEN, for UDP a
    /// bound one.
    fn has_listener(&mut self, packet: &Packet) -> bool;
    /// Whether a TCP socket with exactly this packet's addresses and ports exists.
    fn has_connection(&mut self, packet: &Packet) -> bool;
    /// Takes away the packet's conntrack entry if it still is of no use ([`Entry::replaceable`]).
    fn expire(&mut self, packet: &Packet) -> Result<(), ()>;
    /// Makes a conntrack entry for the flow whose destination NAT is already done, to where it goes anyway.
    fn create(&mut self, packet: &Packet) -> Result<u32, Reason>;
    /// Remembers that the entry with this id is ours.
    fn remember(&mut self, packet: &Packet, id: u32) -> Result<(), ()>;
    /// Remembers that the flow is an engine's. No room: then it is not remembered.
    fn remember_engines(&mut self, packet: &Packet);
    /// Forgets the flow.
    fn forget(&mut self, packet: &Packet);
}

/// Decides about a packet, and makes its flow's conntrack entry if it is to be steered.
#[inline(always)]
pub fn decide<K: Kernel>(packet: &Packet, kernel: &mut K) -> Reason {
    match kernel.conntrack(packet) {
        Conntrack::Failed => Reason::LookupFailed,
        Conntrack::Missing => without_entry(packet, kernel),
        Conntrack::Found(entry) => with_entry(packet, entry, kernel),
    }
}

#[inline(always)]
fn with_entry<K: Kernel>(packet: &Packet, entry: Entry, kernel: &mut K) -> Reason {
    if let Some(reason) = entry.replaceable(packet) {
        return match admit(packet, kernel) {
            Err(reason) => leave(packet, reason, kernel),
            Ok(()) if kernel.expire(packet).is_err() => Reason::ExpireFailed,
            Ok(()) => create(packet, reason, kernel),
        };
    }
    if entry.is_reply {
        return Reason::Reply;
    }
    if entry.status & status::DST_NAT != 0 {
        // A datagram does not tell whether its flow has just begun. Without this note, one whose entry was
        // lost (conntrack -F) would be steered away from the engine that carries it.
        if matches!(packet.role, Role::Datagram) && kernel.remembered(packet) != Some(FlowState::ENGINES) {
            kernel.remember_engines(packet);
        }
        return Reason::EngineNat;
    }
    if kernel.remembered(packet) == Some(entry.id) { Reason::Established } else { Reason::NotOurs }
}

impl Entry {
    /// Why a flow that begins with this packet needs a new entry in this one's place, if it does.
    ///
    /// Nothing wider than this may ever be taken away: it would end established flows that engines carry.
    #[inline(always)]
    pub const fn replaceable(&self, packet: &Packet) -> Option<Reason> {
        match packet.role {
            Role::Syn if self.is_finished() => Some(Reason::Reused),
            Role::Syn | Role::Datagram if self.is_caught() && !self.is_reply => Some(Reason::Healed),
            _ => None,
        }
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
    /// Docker without its proxy) masquerade such flows.
    #[inline(always)]
    const fn is_caught(&self) -> bool {
        self.status & (status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY) == status::DST_NAT
    }
}

#[inline(always)]
fn without_entry<K: Kernel>(packet: &Packet, kernel: &mut K) -> Reason {
    match packet.role {
        // Should the engine no longer carry it, the next datagram finds it caught, and heals it.
        Role::Datagram if kernel.remembered(packet) == Some(FlowState::ENGINES) => Reason::EngineNat,
        Role::Syn | Role::Datagram => match admit(packet, kernel) {
            Ok(()) => create(packet, Reason::New, kernel),
            Err(reason) => leave(packet, reason, kernel),
        },
        // The entry is lost (conntrack -F), or never was. Conntrack would take up the flow as a new one and
        // an engine's rule would catch it: with a socket of our own at this end that breaks it for certain.
        Role::Ack => {
            if !kernel.has_connection(packet) {
                return Reason::NoSocket;
            }
            if kernel.remembered(packet).is_none()
                && let Err(reason) = admit(packet, kernel)
            {
                return reason;
            }
            create(packet, Reason::PickedUp, kernel)
        }
        Role::Other => Reason::Stray,
    }
}

/// Whether a flow that begins with this packet is to be steered: the one place that decides about a port.
#[inline(always)]
fn admit<K: Kernel>(packet: &Packet, kernel: &mut K) -> Result<(), Reason> {
    match kernel.written_policy(packet) {
        Policy::Pass => return Err(Reason::Exempt),
        Policy::Steer => {}
        Policy::Unset => match kernel.default_policy() {
            Policy::Steer => {}
            Policy::Pass | Policy::Unset => return Err(Reason::DefaultPolicy),
        },
    }
    if kernel.has_listener(packet) { Ok(()) } else { Err(Reason::NoListener) }
}

/// Leaves a flow that begins with this packet to the stack. What we remember of an earlier flow on the same
/// addresses must not be taken for it: its entry may come to lie where that one's lay, and ids are addresses.
#[inline(always)]
fn leave<K: Kernel>(packet: &Packet, reason: Reason, kernel: &mut K) -> Reason {
    kernel.forget(packet);
    reason
}

#[inline(always)]
fn create<K: Kernel>(packet: &Packet, reason: Reason, kernel: &mut K) -> Reason {
    match kernel.create(packet) {
        Err(failed) => failed,
        Ok(id) => match kernel.remember(packet, id) {
            Ok(()) => reason,
            Err(()) => Reason::Unremembered,
        },
    }
}
