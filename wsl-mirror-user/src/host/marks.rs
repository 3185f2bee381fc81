//! Bits of `skb->mark`: which ones are in use on this machine.
//!
//! A bit is in use if somebody sets it, or looks whether it is set:
//! - a value that is compared or set: its bits that are 1;
//! - a mask that narrows a comparison or a change to a part of the mark: all of its bits, since they are somebody's
//!   field, whatever it contains. A mask of more than half of the mark narrows nothing: `mark set 0x1` and
//!   `mark != 0x1`, as WSL has them for every packet, mean bit 0x1 and not the whole.

/// Bits, and who uses them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkUse {
    /// The bits.
    pub bits: u32,
    /// The rule, as one finds it again.
    pub by: String,
}

/// The bits that a mask claims.
pub const fn claimed(mask: u32) -> u32 {
    if mask.count_ones() <= u32::BITS / 2 { mask } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_claims_a_field_but_not_the_whole_mark() {
        assert_eq!(claimed(0x00ff_0000), 0x00ff_0000);
        assert_eq!(claimed(0xffff_0000), 0xffff_0000);
        assert_eq!((claimed(u32::MAX), claimed(0x7fff_ffff), claimed(!0x4000)), (0, 0, 0));
    }
}
