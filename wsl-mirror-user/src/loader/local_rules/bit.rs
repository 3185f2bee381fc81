//! The bit of `SO_MARK` that nobody else uses.

use crate::host::routing::Rule;

/// Bits that others use: WSL's `WSLOUTPUT`, Cilium, netavark and CNI's portmap, kube-proxy, Tailscale.
const OF_OTHERS: u32 = 0x1 | 0xf00 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x00ff_0000;
/// The bits to choose from, best first. Cilium and Calico use the upper ones in some set-ups.
const CANDIDATES: [u32; 15] = [
    0x40,
    0x20,
    0x10,
    0x8,
    0x4,
    0x2,
    0x80,
    0x0100_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
    0x8000_0000,
];

/// Chooses the bit: the one that is in use (`live`) while it is free, else the best free one.
pub fn choose(live: Option<u32>, taken: u32) -> Option<u32> {
    let taken = taken | OF_OTHERS;
    live.into_iter().chain(CANDIDATES).find(|bit| bit.is_power_of_two() && bit & taken == 0)
}

/// The bits that policy route rules of others go by.
///
/// Without a mask a rule is for one mark and no other (`wg-quick` has `not fwmark 0xca6c`): its own bits count.
pub fn of_rules<'a>(rules: impl Iterator<Item = &'a Rule>) -> u32 {
    let bits = rules.filter_map(Rule::mark).map(|(value, mask)| if mask == u32::MAX { value } else { mask });
    bits.fold(0, |all, bits| all | bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_bit_is_chosen() {
        assert_eq!(choose(None, 0), Some(0x40));
        assert_eq!(choose(None, 0x40), Some(0x20));
        assert_eq!(choose(None, 0xff), Some(0x0100_0000));
        assert_eq!(choose(None, u32::MAX), None);
        for bit in (0..15).scan(0, |taken, _| {
            let bit = choose(None, *taken)?;
            *taken |= bit;
            Some(bit)
        }) {
            assert_eq!(bit & OF_OTHERS, 0, "{bit:#x}");
        }
    }

    #[test]
    fn a_bit_in_use_stays_while_it_is_free() {
        assert_eq!(choose(Some(0x10), 0), Some(0x10));
        assert_eq!(choose(Some(0x10), 0x10), Some(0x40));
        assert_eq!(choose(Some(0x30), 0), Some(0x40), "two bits are no bit");
        assert_eq!(choose(Some(0x4000), 0), Some(0x40), "another release's choice");
    }
}
