//! A flow that begins, and the policy that admits it.

use super::Kernel;
use crate::abi::{Policy, Reason};
use crate::packet::Packet;

/// A flow that begins, and the entries that have to go first.
///
/// Bits of one number, and no fields: the program hides one number from the kernel's verifier ([`Kernel::opaque`]).
#[derive(Clone, Copy)]
pub(super) struct Request(u64);

impl Request {
    /// The bits that hold the reason for the verdict, should the policy admit the flow.
    const REASON: u64 = 0xff;
    /// The entry on the alias has to go first.
    pub const EXPIRE_ON_ALIAS: u64 = 1 << 8;
    /// The entry of the packet's own tuple has to go first.
    pub const EXPIRE_OWN: u64 = 1 << 9;

    #[inline(always)]
    pub const fn new(reason: Reason, bits: u64) -> Self {
        Self(reason as u64 | bits)
    }

    /// The same request for another reason, with these bits too.
    #[inline(always)]
    pub const fn with(self, reason: Reason, bits: u64) -> Self {
        Self(self.0 & !Self::REASON | reason as u64 | bits)
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
        if self.0 & Self::REASON == Reason::Reused as u64 { Reason::Reused } else { Reason::New }
    }
}

/// Decides about a port: the port's own policy, else its owner's, else the default.
///
/// # Errors
/// The reason for which the packet passes.
#[inline(always)]
pub(super) fn admit<K: Kernel>(packet: &Packet, kernel: &mut K) -> Result<(), Reason> {
    let of_port = kernel.port_policy(packet);
    if matches!(of_port, Policy::Pass) {
        return Err(Reason::Exempt);
    }
    let Some(listener) = kernel.listener(packet) else { return Err(Reason::NoListener) };
    let policy = match (of_port, listener.owner) {
        (Policy::Steer, _) | (_, Policy::Steer) => Policy::Steer,
        (_, Policy::Pass) => return Err(Reason::OwnerPolicy),
        (_, Policy::Unset) => kernel.default_policy(),
    };
    match policy {
        Policy::Steer => Ok(()),
        Policy::Pass | Policy::Unset => Err(Reason::DefaultPolicy),
    }
}
