//! The bits of `skb->mark` that are ours.

use wsl_mirror_core::abi::DEFAULT_MARK;

use crate::host::marks::MarkUse;

/// The bits that are tried, in this order, where the configuration names none. 0x1 is WSL's, 0x2000 netavark's and
/// CNI portmap's, 0xc000 kube-proxy's, 0xf00 Cilium's, 0xff0000 Tailscale's. In the highest byte there is seldom
/// anything (Calico begins at 0x10000 and takes what it needs); small numbers are what people choose by hand.
pub const PREFERENCES: [u32; 12] = [
    DEFAULT_MARK,
    0x0100_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
    0x80,
    0x40,
    0x20,
    0x10,
];

/// Everybody who uses a bit of `mark`.
pub fn users(mark: u32, uses: &[MarkUse]) -> Vec<&MarkUse> {
    uses.iter().filter(|used| used.bits & mark != 0).collect()
}

/// The first of [`PREFERENCES`] that nobody uses.
pub fn first_free(uses: &[MarkUse]) -> Option<u32> {
    PREFERENCES.into_iter().find(|mark| users(*mark, uses).is_empty())
}

/// The users as a text for people: the first three by name.
pub fn names(users: &[&MarkUse]) -> String {
    const NAMED: usize = 3;
    let mut text: Vec<_> = users.iter().take(NAMED).map(|user| user.by.clone()).collect();
    if users.len() > NAMED {
        text.push(format!("and {} more", users.len() - NAMED));
    }
    text.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_bit_of_the_list_is_taken() {
        let used = |bits| MarkUse { bits, by: format!("{bits:#x}") };
        assert_eq!(first_free(&[]), Some(0x1000));
        assert_eq!(first_free(&[used(0x1), used(0x00ff_0000)]), Some(0x1000));
        assert_eq!(first_free(&[used(0x1200)]), Some(0x0100_0000));
        assert_eq!(first_free(&[used(0x1000), used(0x0f00_0000)]), Some(0x1000_0000));
        assert_eq!(first_free(&[used(u32::MAX)]), None);
    }

    #[test]
    fn each_preference_is_one_bit_that_is_not_known_to_be_somebodys() {
        for (index, mark) in PREFERENCES.into_iter().enumerate() {
            assert_eq!(mark.count_ones(), 1);
            assert_eq!(mark & 0x00ff_ef01, 0, "{mark:#x}");
            assert!(!PREFERENCES[..index].contains(&mark));
        }
    }

    #[test]
    fn many_users_are_cut_short() {
        let uses: Vec<_> = (1..=5).map(|n| MarkUse { bits: 1, by: n.to_string() }).collect();
        assert_eq!(names(&users(1, &uses)), "1; 2; 3; and 2 more");
        assert_eq!(names(&users(2, &uses)), "");
    }
}
