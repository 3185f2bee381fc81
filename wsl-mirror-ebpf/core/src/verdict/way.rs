//! The ways to a port: the plain one, and delivery by `lo`.

use super::{KnownFlow, Listener};
use crate::abi::Carrier;

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
    pub(super) const fn goes_by_lo(self, listener: Listener) -> bool {
        match self {
            Self::Plain => false,
            Self::Open | Self::Seen => listener.by_lo,
            Self::ByLo => true,
        }
    }

    /// Whether a flow that goes on is delivered by `lo`: as before; but what went the plain way before a rule was known
    /// that drops it there does not stay on it.
    #[inline(always)]
    pub(super) const fn goes_on_by_lo(self, flow: KnownFlow) -> bool {
        match self {
            Self::Plain => false,
            Self::Open | Self::Seen => flow.by_lo,
            Self::ByLo => flow.by_lo || matches!(flow.carrier, Some(Carrier::Listener | Carrier::Linux)),
        }
    }
}
