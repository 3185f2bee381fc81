//! Conntrack's answer, and what its entry of a flow means.

use crate::abi::Reason;
use crate::packet::{Packet, Role};

/// `IPS_*` bits of `nf_conn.status` (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
pub mod status {
    /// Conntrack has seen a reply.
    pub const SEEN_REPLY: u64 = 1 << 1;
    /// The source is translated.
    pub const SRC_NAT: u64 = 1 << 4;
    /// The destination is translated.
    pub const DST_NAT: u64 = 1 << 5;
    /// NAT has decided about the source, one way or the other.
    pub const SRC_NAT_DONE: u64 = 1 << 7;
    /// NAT has decided about the destination, one way or the other.
    pub const DST_NAT_DONE: u64 = 1 << 8;
}

/// `enum tcp_conntrack` values (`nf_conntrack_tcp.h`).
pub mod tcp_state {
    /// New: conntrack has seen no packet of the flow.
    pub const NONE: u8 = 0;
    /// Finished, waiting for stragglers. A new SYN restarts the flow.
    pub const TIME_WAIT: u8 = 7;
    /// Reset, or past the last ACK. A new SYN restarts the flow.
    pub const CLOSE: u8 = 8;
}

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

/// What conntrack knows about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The packet goes in the direction of the flow's replies: the other side opened it.
    pub is_reply: bool,
    /// `IPS_*` bits ([`status`]).
    pub status: u64,
    /// `enum tcp_conntrack` ([`tcp_state`]); meaningless for UDP.
    pub tcp_state: u8,
    /// The destination is translated to an address of 127.0.0.0/8: to a program on this machine, not to a
    /// container.
    pub is_to_loopback: bool,
}

impl Entry {
    /// Why the packet's flow needs a new entry in this one's place, if it does.
    ///
    /// Either the flow begins; or it is one of ours that an engine's rule caught in mid-stream, because its entry
    /// was flushed after we had seen the packet and before the stack did.
    ///
    /// Nothing wider than this may ever be removed: it would end established flows that engines carry.
    #[inline(always)]
    pub const fn replaceable(&self, packet: &Packet) -> Option<Reason> {
        match packet.role {
            Role::Syn if self.is_finished() => Some(Reason::Reused),
            Role::Syn | Role::Datagram if self.is_caught() && !self.is_reply => Some(Reason::Healed),
            Role::Ack if self.is_caught() && !self.is_reply => Some(Reason::PickedUp),
            _ => None,
        }
    }

    /// Whether we made this entry, in whatever run.
    ///
    /// In ours the destination is decided and the source never is: `nf_nat_setup_info` leaves an entry alone that
    /// is in the table already, and ours is from the start. Any other entry has both decided before it gets there,
    /// on the flow's first way through the stack; or neither, on a machine without NAT.
    #[inline(always)]
    pub(super) const fn is_ours(&self) -> bool {
        self.status & (status::SRC_NAT_DONE | status::DST_NAT_DONE) == status::DST_NAT_DONE
    }

    /// Whether somebody else's DNAT translates the flow.
    #[inline(always)]
    pub(super) const fn is_translated(&self) -> bool {
        self.status & status::DST_NAT != 0
    }

    /// Whether the TCP flow of this entry is over, so that a SYN begins another one.
    ///
    /// Conntrack drops an entry in `TIME_WAIT`, whichever side opened it, and starts over with a fresh one that
    /// engines' rules catch (`nf_conntrack_tcp_packet`, "Attempt to reopen a closed/aborted connection"). To an
    /// entry in CLOSE that the other side opened, the SYN is invalid.
    #[inline(always)]
    const fn is_finished(&self) -> bool {
        matches!(self.tcp_state, tcp_state::TIME_WAIT | tcp_state::CLOSE)
    }

    /// Whether an engine's DNAT caught the flow and it cannot work: conntrack saw no reply, and without source NAT
    /// the container sees 127.0.0.1 and would answer itself.
    ///
    /// Engines that need no help (Podman, Docker without its proxy) masquerade such flows. A program on this machine,
    /// to which a rule may redirect a port, need not answer at all.
    #[inline(always)]
    const fn is_caught(&self) -> bool {
        self.status & (status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY) == status::DST_NAT
            && !self.is_to_loopback
    }
}
