//! The listener of a flow.

use crate::abi::Policy;

/// The socket that would receive a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The policy of its owner (`OWNERS`).
    pub owner: Policy,
}
