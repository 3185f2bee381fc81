//! Owners: the processes that serve sockets.

use super::Policy;

/// Value of `SOCKET_OWNER` (socket storage) and key of `OWNERS` (hash): a process by its user and its name.
///
/// A socket's tag names the process that bound it, or the last one that called getsockname(2) on it since. docker-proxy
/// does the latter: dockerd hands it the listener from 28.0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Owner {
    /// The real user id, as the initial user namespace has it; in `OWNERS` also [`Owner::ANY_UID`].
    pub uid: u32,
    /// The thread's name (`comm`), filled up with zeros; the kernel cuts names to 15 bytes.
    pub name: [u8; 16],
}

impl Owner {
    /// In a key of `OWNERS`: any user. No user has this id (`INVALID_UID`).
    pub const ANY_UID: u32 = u32::MAX;

    /// The owner of this name, which is cut to 15 bytes as the kernel cuts it.
    pub const fn new(name: &[u8], uid: u32) -> Self {
        let mut owner = Self { uid, name: [0; 16] };
        let mut at = 0;
        while at < name.len() && at < owner.name.len() - 1 {
            owner.name[at] = name[at];
            at += 1;
        }
        owner
    }

    /// The same name with any user.
    #[must_use]
    #[inline(always)]
    pub const fn of_any_user(self) -> Self {
        Self { uid: Self::ANY_UID, ..self }
    }

    /// The name, up to the first byte that is not UTF-8.
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        match core::str::from_utf8(&self.name[..len]) {
            Ok(name) => name,
            Err(error) => core::str::from_utf8(&self.name[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

/// Value of `OWNERS`: the policy of the ports that a process serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OwnerPolicy {
    /// A [`Policy`].
    pub policy: u32,
}

impl OwnerPolicy {
    /// The value of this policy.
    pub const fn new(policy: Policy) -> Self {
        Self { policy: policy as u32 }
    }

    /// The policy that this number stands for.
    #[inline(always)]
    pub const fn policy(self) -> Policy {
        match self.policy {
            1 => Policy::Pass,
            2 => Policy::Steer,
            _ => Policy::Unset,
        }
    }
}

/// The owners that have a policy without any configuration: Docker's proxy, run by root. Any user may give a program
/// this name, so other users do not count.
pub const BUILT_IN_OWNERS: [(Owner, Policy); 1] = [(Owner::new(b"docker-proxy", 0), Policy::Steer)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_has_its_name_cut_as_the_kernel_cuts_it() {
        assert_eq!(Owner::new(b"docker-proxy", 0).name, *b"docker-proxy\0\0\0\0");
        let cut = Owner::new(b"a-name-of-17-bytes", 7);
        assert_eq!((cut.name(), cut.name[15], cut.uid), ("a-name-of-17-by", 0, 7));
        assert_eq!(cut.of_any_user(), Owner::new(b"a-name-of-17-bytes", Owner::ANY_UID));
        assert_eq!(Owner { uid: 0, name: [0xff; 16] }.name(), "");
    }

    #[test]
    fn an_unknown_number_of_an_owner_counts_as_unset() {
        for policy in [Policy::Unset, Policy::Pass, Policy::Steer] {
            assert_eq!(OwnerPolicy::new(policy).policy(), policy);
        }
        assert_eq!(OwnerPolicy { policy: 0x102 }.policy(), Policy::Unset);
    }
}
