//! What the programs on `loopback0` return.

/// `TCX_NEXT`; for `cls_bpf` `TC_ACT_UNSPEC`, which has the same value and meaning.
pub const NEXT: i32 = -1;
/// `TCX_DROP`; for `cls_bpf` `TC_ACT_SHOT`, likewise.
pub const DROP: i32 = 2;
