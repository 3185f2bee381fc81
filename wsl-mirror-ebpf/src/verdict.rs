//! The verdict: one pure function, compiled into the program and into the host's tests.

use crate::abi::{Carrier, Policy, Reason};
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

/// What the program asks of the kernel and does to it. Each call may fail; none may hold anything on return.
#[expect(clippy::result_unit_err, reason = "of a call that failed, the verdict needs to know only that")]
pub trait Kernel {
    /// Finds the packet's conntrack entry.
    fn conntrack(&mut self, packet: &Packet) -> Conntrack;
    /// Who carried the packet's flow, if we remember it.
    fn remembered(&mut self, packet: &Packet) -> Option<Carrier>;
    /// What the user wrote about the packet's destination port.
    fn written_policy(&mut self, packet: &Packet) -> Policy;
    /// What ports get that nobody wrote about, served by whom nobody wrote about.
    fn default_policy(&mut self) -> Policy;
    /// What is written about the owner of the socket that would receive a flow that this packet begins (for TCP one
    /// in LISTEN, for UDP a bound one); `None` if there is no such socket.
    fn listener(&mut self, packet: &Packet) -> Option<Policy>;
    /// Whether a TCP socket with exactly this packet's addresses and ports exists.
    fn has_connection(&mut self, packet: &Packet) -> bool;
    /// Takes away the packet's conntrack entry if it still is of no use ([`Entry::replaceable`]).
    fn expire(&mut self, packet: &Packet) -> Result<(), ()>;
    /// Makes a conntrack entry for the flow whose destination NAT is already done, to where it goes anyway.
    fn create(&mut self, packet: &Packet) -> Result<(), Reason>;
    /// Remembers who carries the packet's flow.
    fn remember(&mut self, packet: &Packet, carrier: Carrier) -> Result<(), ()>;
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
        let wanted = match packet.role {
            Role::Ack if is_ours_for_certain(packet, kernel) => Ok(()),
            Role::Ack => Err(Reason::EngineNat),
            _ => admit(packet, kernel).map_err(|reason| leave(packet, reason, kernel)),
        };
        return match wanted {
            Err(reason) => reason,
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
        if matches!(packet.role, Role::Datagram) && kernel.remembered(packet) != Some(Carrier::Engine) {
            // No room: then it is not remembered.
            let _ = kernel.remember(packet, Carrier::Engine);
        }
        return Reason::EngineNat;
    }
    if entry.is_ours() { Reason::Established } else { Reason::NotOurs }
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
/// engine's DNAT of it is wrong for certain.
#[inline(always)]
fn is_ours_for_certain<K: Kernel>(packet: &Packet, kernel: &mut K) -> bool {
    kernel.remembered(packet) == Some(Carrier::Listener) && kernel.has_connection(packet)
}

#[inline(always)]
fn without_entry<K: Kernel>(packet: &Packet, kernel: &mut K) -> Reason {
    match packet.role {
        // Should the engine no longer carry it, the next datagram finds it caught, and heals it.
        Role::Datagram if kernel.remembered(packet) == Some(Carrier::Engine) => Reason::EngineNat,
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
            if kernel.remembered(packet) != Some(Carrier::Listener)
                && let Err(reason) = admit(packet, kernel)
            {
                return reason;
            }
            create(packet, Reason::PickedUp, kernel)
        }
        Role::Other => Reason::Stray,
    }
}

/// Whether a flow that begins with this packet is to be steered: the one place that decides about a port. What is
/// written about the port, else about who serves it, else the default.
#[inline(always)]
fn admit<K: Kernel>(packet: &Packet, kernel: &mut K) -> Result<(), Reason> {
    let written = kernel.written_policy(packet);
    if matches!(written, Policy::Pass) {
        return Err(Reason::Exempt);
    }
    let Some(of_owner) = kernel.listener(packet) else { return Err(Reason::NoListener) };
    match (written, of_owner) {
        (Policy::Steer, _) | (_, Policy::Steer) => Ok(()),
        (_, Policy::Pass) => Err(Reason::OwnerPolicy),
        (_, Policy::Unset) => match kernel.default_policy() {
            Policy::Steer => Ok(()),
            Policy::Pass | Policy::Unset => Err(Reason::DefaultPolicy),
        },
    }
}

/// Leaves a flow that begins with this packet to the stack. What we remember of an earlier flow on the same
/// addresses is not true of this one.
#[inline(always)]
fn leave<K: Kernel>(packet: &Packet, reason: Reason, kernel: &mut K) -> Reason {
    kernel.forget(packet);
    reason
}

#[inline(always)]
fn create<K: Kernel>(packet: &Packet, reason: Reason, kernel: &mut K) -> Reason {
    match kernel.create(packet) {
        Err(failed) => failed,
        Ok(()) => match kernel.remember(packet, Carrier::Listener) {
            Ok(()) => reason,
            Err(()) => Reason::Unremembered,
        },
    }
}
