//! What the program on tc ingress returns.

/// `TCX_NEXT`; for `cls_bpf` `TC_ACT_UNSPEC`, which has the same value and meaning.
pub const NEXT: i32 = -1;
