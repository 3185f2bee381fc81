//! Conntrack's answer, and what its entry means.

use crate::packet::Role;

/// `IPS_*` bits of `nf_conn.status` (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
pub mod status {
    /// Conntrack has seen a reply.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// The source is translated.
    pub const SRC_NAT: u32 = 1 << 4;
    /// The destination is translated.
    pub const DST_NAT: u32 = 1 << 5;
}

/// `enum tcp_conntrack` values (`nf_conntrack_tcp.h`).
pub mod tcp_state {
    /// Finished, waiting for stragglers. A new SYN restarts the flow.
    pub const TIME_WAIT: u8 = 7;
    /// Reset, or past the last ACK. A new SYN restarts the flow.
    pub const CLOSE: u8 = 8;
}

/// The destination of the tuple under which conntrack is asked for a packet's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Destination {
    /// The packet's own: 127.0.0.1.
    Own,
    /// The alias.
    Alias,
}

/// An answer of conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conntrack {
    /// The tuple has no entry.
    Missing,
    /// The tuple has this entry.
    Found(Entry),
    /// The lookup itself failed.
    Failed,
}

/// What conntrack knows about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The tuple goes in the direction of the flow's replies: the other side opened the flow.
    pub is_reply: bool,
    /// The lower 32 `IPS_*` bits ([`status`]).
    pub status: u32,
    /// `enum tcp_conntrack` ([`tcp_state`]); meaningless for UDP.
    pub tcp_state: u8,
}

impl Entry {
    /// Whether this entry, found on the alias, carries the flow: it is ours, from this run or an earlier one.
    ///
    /// An entry that the kernel made there from a stray packet has no translation.
    #[inline(always)]
    pub const fn carries(self) -> bool {
        !self.is_reply && self.is_translated()
    }

    /// Whether a packet of this role may expire the entry. Anything wider ends flows that live.
    ///
    /// - A bare SYN may expire the finished entry of exactly its tuple. Conntrack itself drops an entry in `TIME_WAIT` on
    ///   a SYN and starts over with a fresh one, which engines' rules catch (`nf_conntrack_tcp_packet`, "Attempt to
    ///   reopen a closed/aborted connection"). To one in CLOSE that the other side began, the SYN is invalid. The server
    ///   begins the entry if it is the first to speak after a flush.
    /// - A SYN or a datagram may expire an entry on the alias that translates nothing: it carries no flow.
    #[inline(always)]
    pub const fn is_expirable(self, role: Role, destination: Destination) -> bool {
        let is_finished =
            matches!(role, Role::Syn) && matches!(self.tcp_state, tcp_state::TIME_WAIT | tcp_state::CLOSE);
        let is_stray = matches!(destination, Destination::Alias)
            && matches!(role, Role::Syn | Role::Datagram)
            && !self.is_translated();
        is_finished || is_stray
    }

    /// Whether the destination is translated.
    #[inline(always)]
    pub(super) const fn is_translated(self) -> bool {
        self.status & status::DST_NAT != 0
    }

    /// Whether an engine's DNAT has caught the flow and it cannot work: conntrack saw no reply, and without source NAT
    /// the container sees 127.0.0.1 and would answer itself.
    ///
    /// Engines that need no help (Podman, Docker without its proxy) masquerade such flows.
    #[inline(always)]
    pub(super) const fn is_caught(self) -> bool {
        const NAT: u32 = status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY;
        self.status & NAT == status::DST_NAT
    }
}
