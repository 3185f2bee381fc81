//! A flow that begins: what was found in its way.

use super::kernel::Kernel;

/// A flow that begins, and the entries that have to go first.
///
/// Bits of one number, and no fields: the program hides one number from the kernel's verifier ([`Kernel::opaque`]).
#[derive(Clone, Copy)]
pub(super) struct Request(u64);

impl Request {
    /// The flow begins on addresses of a finished one.
    pub const REUSED: u64 = 1;
    /// The entry of the steered tuple has to go first.
    pub const EXPIRE_STEERED: u64 = 1 << 1;
    /// The entry of the direct tuple has to go first.
    pub const EXPIRE_DIRECT: u64 = 1 << 2;
    /// The entry of the packet's own tuple has to go first.
    pub const EXPIRE_OWN: u64 = 1 << 3;
    /// The entry of the packet's own tuple stays, and its reply tuple is taken: only a direct flow fits beside it.
    pub const BESIDE: u64 = 1 << 4;
    /// A SYN began the same direct flow before, and conntrack saw no reply.
    pub const UNANSWERED: u64 = 1 << 5;
    /// The entry of the steered tuple leads to a holder: it goes, unless the user wants the flow there.
    pub const HELD: u64 = 1 << 6;

    #[inline(always)]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The same request, with these bits too.
    #[inline(always)]
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// The same request, of which the kernel's verifier knows no bit.
    #[inline(always)]
    pub fn hidden_by<K: Kernel>(self, kernel: &K) -> Self {
        Self(kernel.opaque(self.0))
    }

    /// The kernel's verifier learns nothing of the number from the test: it follows what comes behind the test only once.
    #[inline(always)]
    pub fn has<K: Kernel>(self, bit: u64, kernel: &K) -> bool {
        kernel.opaque(self.0) & bit != 0
    }
}
