//! A packet's request to be steered, and the policy that grants it.

use super::{Decision, Kernel, Listener};
use crate::abi::{Policy, Reason};
use crate::packet::{Packet, Role};

/// What the conntrack entry says about a packet.
pub(super) enum Answer {
    /// The entry alone decides.
    Decided(Decision),
    /// The port's policy, its listener and its ways decide.
    Ask(Request),
}

impl Answer {
    /// The packet goes the plain way for this reason.
    #[inline(always)]
    pub const fn plain(reason: Reason) -> Self {
        Self::Decided(Decision::plain(reason))
    }
}

/// A request to steer a packet, and how.
///
/// Bits of one number, and no fields: the program hides one number from the kernel's verifier ([`Kernel::opaque`]).
#[derive(Clone, Copy)]
pub(super) struct Request(u64);

impl Request {
    /// The bits that hold the reason for the verdict, should the request be granted.
    const REASON: u64 = 0xff;
    /// No policy can refuse the packet, and [`Request::BY_LO`] alone says which way it goes.
    pub const GRANTED: u64 = 1 << 8;
    /// The packet goes by `lo`, whatever its listener says.
    pub const BY_LO: u64 = 1 << 9;
    /// The packet's entry has to be removed first.
    pub const REPLACE: u64 = 1 << 10;
    /// The flow goes on with its entry; only the way is in question.
    pub const CONTINUE: u64 = 1 << 11;
    /// Of a flow that goes on: a second SYN, because a rule may have dropped the first.
    pub const REPEATED_SYN: u64 = 1 << 12;

    #[inline(always)]
    pub const fn new(reason: Reason, bits: u64) -> Self {
        Self(reason as u64 | bits)
    }

    /// A request that is granted already.
    #[inline(always)]
    pub const fn granted(reason: Reason, by_lo: bool, bits: u64) -> Self {
        Self::new(reason, bits | Self::GRANTED | if by_lo { Self::BY_LO } else { 0 })
    }

    /// The same request, of which the kernel's verifier knows no bit.
    #[inline(always)]
    pub fn hidden_by<K: Kernel>(self, kernel: &K) -> Self {
        Self(kernel.opaque(self.0))
    }

    #[inline(always)]
    pub const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match Reason::from_number((self.0 & Self::REASON) as u32) {
            Some(reason) => reason,
            // Every request has one.
            None => Reason::NotOurs,
        }
    }

    /// The decision after a policy refused the packet for this reason.
    #[inline(always)]
    pub fn refused<K: Kernel>(self, packet: &Packet, reason: Reason, kernel: &mut K) -> Decision {
        let may_begin = matches!(packet.role, Role::Syn | Role::Datagram);
        if may_begin && !matches!(self.reason(), Reason::Established) {
            // The record of an earlier flow on the same addresses is not true of this one.
            kernel.forget(packet);
        }
        Decision::plain(if self.has(Self::CONTINUE) { self.reason() } else { reason })
    }
}

/// A policy's answer about a flow that begins.
pub(super) enum Admission {
    /// The flow is steered to this listener.
    Admitted(Listener),
    /// The packet passes for this reason.
    Refused(Reason),
}

/// Decides about a port: the port's own policy, else its owner's, else the default.
#[inline(always)]
pub(super) fn admit<K: Kernel>(packet: &Packet, kernel: &mut K) -> Admission {
    let of_port = kernel.port_policy(packet);
    if matches!(of_port, Policy::Pass) {
        return Admission::Refused(Reason::Exempt);
    }
    let Some(listener) = kernel.listener(packet) else { return Admission::Refused(Reason::NoListener) };
    let policy = match (of_port, listener.owner) {
        (Policy::Steer, _) | (_, Policy::Steer) => Policy::Steer,
        (_, Policy::Pass) => return Admission::Refused(Reason::OwnerPolicy),
        (_, Policy::Unset) => kernel.default_policy(),
    };
    match policy {
        Policy::Steer => Admission::Admitted(listener),
        Policy::Pass | Policy::Unset => Admission::Refused(Reason::DefaultPolicy),
    }
}
