//! Conntrack's answer, and what its entry means.

use crate::abi::Target;
use crate::packet::{LOCALHOST, Role};

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

/// Which tuple of a packet conntrack is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TupleKind {
    /// The packet's own: from the client to 127.0.0.1.
    Own,
    /// That of a steered flow: from the client to the alias.
    Steered,
    /// That of a direct flow: from the source alias to the alias.
    Direct,
}

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// In the order in which one writes it.
    pub address: [u8; 4],
    /// Host order. Of no meaning where a steered flow's listener is meant.
    pub port: u16,
}

impl End {
    /// The listener of a steered flow.
    pub const LISTENER: Self = Self { address: LOCALHOST, port: 0 };

    /// The container of a direct flow.
    #[inline(always)]
    pub const fn of(target: &Target) -> Self {
        Self { address: target.address, port: target.port }
    }

    /// Both in one number: the kernel's verifier follows all later code once for each comparison.
    #[inline(always)]
    const fn number(self) -> u64 {
        (u32::from_ne_bytes(self.address) as u64) << 16 | self.port as u64
    }
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
    /// The lower `IPS_*` bits ([`status`]).
    pub status: u32,
    /// `enum tcp_conntrack` ([`tcp_state`]); meaningless for UDP.
    pub tcp_state: u8,
    /// The address from which replies come, in the order in which one writes it.
    pub reply_source: [u8; 4],
    /// The port from which replies come, host order.
    pub reply_port: u16,
}

impl Entry {
    /// Whether this entry, found under the tuple of a carried flow, carries the flow: it is ours, from this run or an earlier
    /// one.
    ///
    /// - An entry that the kernel made there from a stray packet has no translation.
    /// - An entry on the alias that leads elsewhere is an engine's: a neighbour makes it by a packet to a published port of
    ///   the alias, and it must neither carry a flow nor let replies past the border.
    #[inline(always)]
    pub const fn carries(self, kind: TupleKind) -> bool {
        !self.is_reply && self.is_ours(kind)
    }

    /// Whether the entry translates as ours of this kind do. A steered flow leads to 127.0.0.1. A direct flow leads to
    /// another machine, and its source is translated too.
    #[inline(always)]
    pub const fn is_ours(self, kind: TupleKind) -> bool {
        const BOTH: u32 = status::SRC_NAT | status::DST_NAT;
        match kind {
            TupleKind::Own => false,
            TupleKind::Steered => {
                self.status & status::DST_NAT != 0
                    && u32::from_ne_bytes(self.reply_source) == u32::from_ne_bytes(LOCALHOST)
            }
            TupleKind::Direct => self.status & BOTH == BOTH && self.reply_source[0] != LOCALHOST[0],
        }
    }

    /// Whether a packet of this role may expire the entry. Anything wider ends flows that live.
    ///
    /// - A bare SYN may expire the finished entry of exactly its tuple. Conntrack itself drops an entry in `TIME_WAIT` on
    ///   a SYN and starts over with a fresh one, which engines' rules catch (`nf_conntrack_tcp_packet`, "Attempt to
    ///   reopen a closed/aborted connection"). To one in CLOSE that the other side began, the SYN is invalid. The server
    ///   begins the entry if it is the first to speak after a flush.
    /// - A SYN or a datagram may expire an entry under a carried flow's tuple that is not ours: it carries no flow.
    /// - A SYN may expire the entry of a direct flow that saw no reply: the flow begins once more.
    /// - A SYN or a datagram may expire the entry of a carried flow that leads elsewhere than to `target`.
    #[inline(always)]
    pub const fn is_expirable(self, role: Role, kind: TupleKind, target: End) -> bool {
        if matches!(role, Role::Syn) && self.is_over() {
            return true;
        }
        if matches!(kind, TupleKind::Own) || !matches!(role, Role::Syn | Role::Datagram) {
            return false;
        }
        let is_unanswered = matches!((kind, role), (TupleKind::Direct, Role::Syn)) && !self.is_answered();
        let leads_there = match kind {
            TupleKind::Direct => self.leads_to(target),
            // To the packet's own port.
            TupleKind::Steered | TupleKind::Own => self.leads_to_address(target.address),
        };
        !self.is_ours(kind) || is_unanswered || !leads_there
    }

    /// Whether the connection is finished and conntrack only remembers it.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self.tcp_state, tcp_state::TIME_WAIT | tcp_state::CLOSE)
    }

    /// Whether conntrack saw a reply.
    #[inline(always)]
    pub const fn is_answered(self) -> bool {
        self.status & status::SEEN_REPLY != 0
    }

    /// Whether replies come from this end.
    #[inline(always)]
    pub const fn leads_to(self, end: End) -> bool {
        self.replies().number() == end.number()
    }

    #[inline(always)]
    const fn replies(self) -> End {
        End { address: self.reply_source, port: self.reply_port }
    }

    #[inline(always)]
    const fn leads_to_address(self, address: [u8; 4]) -> bool {
        u32::from_ne_bytes(self.reply_source) == u32::from_ne_bytes(address)
    }

    /// Whether the destination is translated.
    #[inline(always)]
    pub(super) const fn is_translated(self) -> bool {
        self.status & status::DST_NAT != 0
    }

    /// Whether an engine's DNAT has caught the flow and it cannot work: conntrack saw no reply, and without source NAT
    /// the container sees 127.0.0.1 and would answer itself.
    ///
    /// Engines that need no help (Podman, Docker without its proxy) masquerade such flows. A flow that a user's rule
    /// redirects to another port of this machine is none: its program need not answer at all.
    #[inline(always)]
    pub(super) const fn is_caught(self) -> bool {
        const NAT: u32 = status::DST_NAT | status::SRC_NAT | status::SEEN_REPLY;
        self.status & NAT == status::DST_NAT && self.reply_source[0] != LOCALHOST[0]
    }
}
