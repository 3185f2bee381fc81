//! Verdicts, and the reasons for them.

use core::mem::transmute;

/// What a packet got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Untouched, on to the next program.
    Pass,
    /// Untouched, on to the next program, because one of our own calls failed.
    Failed,
    /// Carried to the listener: sent to the alias, by a conntrack entry that no engine's rule touches; on egress a reply of
    /// such a flow.
    Steer,
    /// Carried to the container itself: likewise, from the source alias.
    Direct,
    /// Dropped, on egress alone: the alias never leaves this machine.
    Drop,
}

impl Verdict {
    /// All, in the order in which they are listed.
    pub const ALL: [Self; 5] = [Self::Steer, Self::Direct, Self::Pass, Self::Drop, Self::Failed];

    /// Whether the packet belongs to a flow that one of our conntrack entries takes somewhere.
    #[inline(always)]
    pub const fn is_carried(self) -> bool {
        matches!(self, Self::Steer | Self::Direct)
    }

    /// `pass`, `failed`, `steer`, `direct` or `drop`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Failed => "failed",
            Self::Steer => "steer",
            Self::Direct => "direct",
            Self::Drop => "drop",
        }
    }
}

/// Defines [`Reason`] and [`Verdicts`] from one list: each counter has a reason, and each reason a name and a sentence.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:ident, $verdict:ident;)+) => {
        /// Why a packet got its verdict.
        #[expect(clippy::doc_markdown, reason = "the sentences are shown to people as they stand")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// All, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The reason of this number: its place in [`Self::ALL`].
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                if (number as usize) < Self::ALL.len() {
                    // SAFETY: the variants are numbered from 0 on, without a gap.
                    Some(unsafe { transmute::<u32, Self>(number) })
                } else {
                    None
                }
            }

            /// The counter's name: what `bpftool map dump` shows.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($name),)+ }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// The verdict that it is a reason for.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }
        }

        /// Value of `VERDICTS` (per-CPU array, one element): packets by reason.
        #[expect(clippy::doc_markdown, reason = "the sentences are shown to people as they stand")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct Verdicts {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Verdicts {
            /// The counter of this reason.
            #[inline(always)]
            pub fn counter(&mut self, reason: Reason) -> &mut u64 {
                match reason { $(Reason::$variant => &mut self.$name,)+ }
            }

            /// The counter of this reason.
            pub const fn get(&self, reason: Reason) -> u64 {
                match reason { $(Reason::$variant => self.$name,)+ }
            }
        }
    };
}

reasons! {
    /// the flow began and was steered
    New => steer_new, Steer;
    /// a flow began on the addresses of a finished one, whose conntrack entry was replaced
    Reused => steer_reused, Steer;
    /// a flow that should have gone to the container was steered: the container cannot be reached or does not answer
    Instead => steer_instead, Steer;
    /// a packet of a steered flow
    Established => steer_established, Steer;
    /// a later fragment of a steered datagram
    Fragment => steer_fragment, Steer;
    /// a reply of a steered flow, on egress
    Returned => steer_reply, Steer;

    /// the flow began and went straight to the container
    DirectNew => direct_new, Direct;
    /// a direct flow began on the addresses of a finished one, or of one to another container
    DirectReused => direct_reused, Direct;
    /// a packet of a direct flow
    DirectEstablished => direct_established, Direct;
    /// a direct flow had lost its conntrack entry (conntrack -F) and got a new one
    DirectPickedUp => direct_picked_up, Direct;
    /// a later fragment of a direct datagram
    DirectFragment => direct_fragment, Direct;
    /// a reply of a direct flow, on egress
    DirectReturned => direct_reply, Direct;

    /// not IPv4 (ARP, IPv6, …)
    NotIpv4 => pass_not_ipv4, Pass;
    /// carries a VLAN tag
    Vlan => pass_vlan, Pass;
    /// the frame is addressed to somebody else
    NotToUs => pass_not_to_us, Pass;
    /// shorter than its headers say
    Truncated => pass_truncated, Pass;
    /// IP or transport header with impossible values
    BadHeader => pass_bad_header, Pass;
    /// neither TCP nor UDP
    NotTcpUdp => pass_not_tcp_udp, Pass;
    /// not from 127.0.0.0/8 to 127.0.0.1
    NotLoopback => pass_not_loopback, Pass;
    /// a later fragment: it carries no ports, and its first fragment has not come or was not carried
    LaterFragment => pass_later_fragment, Pass;
    /// source or destination port 0
    PortZero => pass_port_zero, Pass;
    /// this machine cannot carry flows at present (`wsl-mirror status` says why)
    NotCarrying => pass_not_carrying, Pass;
    /// it begins no flow, and no flow to this port was ever carried
    NeverCarried => pass_never_carried, Pass;
    /// a reply of a flow that Linux opened
    Reply => pass_reply, Pass;
    /// a flow that another conntrack entry carries: Linux to Linux, older than wsl-mirror, or picked up
    NotOurs => pass_not_ours, Pass;
    /// an engine carries the flow by DNAT
    EngineNat => pass_engine_nat, Pass;
    /// a carried flow had lost its conntrack entry (conntrack -F); it goes on by a new one, without the alias
    PickedUp => pass_picked_up, Pass;
    /// the port is exempt
    Exempt => pass_exempt, Pass;
    /// the policy of the port's owner is to pass (OWNERS)
    OwnerPolicy => pass_owner_policy, Pass;
    /// no policy names the port or its owner, and the default is to pass
    DefaultPolicy => pass_default_policy, Pass;
    /// the port's holder never accepts, and the engine's own rules bring the flow to the container
    Holder => pass_holder, Pass;
    /// the port's policy is direct, and the container behind it is not known
    NoTarget => pass_no_target, Pass;
    /// the container behind the port left a direct flow unanswered within the last minute, and no proxy accepts
    Unanswered => pass_unanswered, Pass;
    /// direct flows cannot reach the container (route, forwarding, MTU), and no proxy accepts
    Unreachable => pass_unreachable, Pass;
    /// nobody listens on the port
    NoListener => pass_no_listener, Pass;
    /// a segment of an unknown connection, and no local socket belongs to it
    NoSocket => pass_no_socket, Pass;
    /// a segment of an unknown connection that cannot begin one (RST, FIN, SYN+ACK, …)
    Stray => pass_stray, Pass;

    /// from the alias or to the source alias, and no reply of a carried flow: a forgery or a loop, on egress
    NoReply => drop_no_reply, Drop;
    /// the kernel could not translate a reply of a carried flow, on egress
    ReplyFailed => drop_reply_failed, Drop;

    /// the loader has not written SETTINGS yet
    NoSettings => failed_no_settings, Failed;
    /// bpf_skb_pull_data failed: the headers could not be made readable
    PullFailed => failed_pull, Failed;
    /// bpf_skb_ct_lookup failed with something else than "not found"
    LookupFailed => failed_lookup, Failed;
    /// a finished conntrack entry, or a stray one on the alias, could not be removed
    ExpireFailed => failed_expire, Failed;
    /// bpf_skb_ct_alloc failed: the conntrack table is full or memory is short
    AllocFailed => failed_alloc, Failed;
    /// bpf_ct_set_nat_info failed
    NatFailed => failed_nat, Failed;
    /// bpf_ct_insert_entry failed: another entry has the flow's addresses, or the hash chain is too long
    InsertFailed => failed_insert, Failed;
    /// the kernel could not write the alias into the packet
    RewriteFailed => failed_rewrite, Failed;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_named_after_its_verdict() {
        let mut all = Verdicts::default();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_number(*reason as u32), Some(*reason));
            *all.counter(*reason) += index as u64 + 1;
            assert!(
                reason.name().starts_with(reason.verdict().name()),
                "{} is a reason for {}",
                reason.name(),
                reason.verdict().name()
            );
        }
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(all.get(*reason), index as u64 + 1, "{} shares a counter", reason.name());
        }
    }
}
