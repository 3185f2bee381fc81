//! What becomes of a packet.

use crate::abi::Reason;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why.
    pub reason: Reason,
    /// Whether the packet is delivered by `lo`.
    pub by_lo: bool,
}

impl Decision {
    /// The packet goes the plain way.
    #[must_use]
    #[inline(always)]
    pub const fn plain(reason: Reason) -> Self {
        Self { reason, by_lo: false }
    }
}
