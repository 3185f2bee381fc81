//! The listener of a flow.

use crate::abi::{Policy, Target};

/// The socket that would receive a flow, or none.
///
/// Plain fields and no `Option`: of a value that may be none, the compiler copies parts that were never written, which the
/// kernel's verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Whether there is one. Nothing else counts if not.
    pub exists: bool,
    /// The policy of its owner (`OWNERS`).
    pub owner: Policy,
    /// Whether the container behind it is known.
    pub has_target: bool,
    /// The container behind it, if it is known.
    pub target: Target,
}

impl Listener {
    /// No socket.
    pub const NONE: Self =
        Self { exists: false, owner: Policy::Unset, has_target: false, target: Target::NONE };

    /// A socket whose owner has this policy.
    pub const fn new(owner: Policy, target: Option<Target>) -> Self {
        match target {
            Some(target) => Self { exists: true, owner, has_target: true, target },
            None => Self { exists: true, owner, has_target: false, target: Target::NONE },
        }
    }

    /// The container behind it, if both are known.
    #[inline(always)]
    pub const fn target(&self) -> Option<&Target> {
        if self.exists && self.has_target { Some(&self.target) } else { None }
    }
}
