//! Policies of ports.

/// What a port shall get.
///
/// Maps hold it as a plain number, because `bpftool map update` may write any: an unknown number counts as
/// [`Policy::Unset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Policy {
    /// No policy: the next source decides.
    Unset = 0,
    /// Leave the port alone: it is exempt.
    Pass = 1,
    /// Steer flows to the port's listener.
    Steer = 2,
}

impl Policy {
    /// The policy that this byte stands for.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Pass,
            2 => Self::Steer,
            _ => Self::Unset,
        }
    }

    /// `unset`, `pass` or `steer`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Pass => "pass",
            Self::Steer => "steer",
        }
    }
}

/// Value of `PORT_POLICY` (hash): what the user wrote about a port, by where it was written.
///
/// Each writer has its own field, so that neither undoes the other; the command line is the stronger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortPolicy {
    /// A [`Policy`] written by `wsl-mirror exempt` (or by bpftool).
    pub cli: u8,
    /// A [`Policy`] written by `wsl-mirror load` from the configuration file.
    pub config: u8,
}

impl PortPolicy {
    /// The policy in force: the command line's, else the file's.
    #[inline(always)]
    pub const fn effective(self) -> Policy {
        match Policy::from_byte(self.cli) {
            Policy::Unset => Policy::from_byte(self.config),
            cli => cli,
        }
    }

    /// Whether neither writer has set a policy.
    pub const fn is_unset(self) -> bool {
        matches!(self.effective(), Policy::Unset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_overrides_the_file() {
        let policy = |cli, config| PortPolicy { cli, config }.effective();
        assert_eq!(policy(0, 0), Policy::Unset);
        assert_eq!(policy(0, 1), Policy::Pass);
        assert_eq!(policy(2, 1), Policy::Steer);
        assert_eq!(policy(1, 2), Policy::Pass);
    }

    #[test]
    fn an_unknown_byte_counts_as_unset() {
        for byte in 3..=u8::MAX {
            assert_eq!(PortPolicy { cli: byte, config: 1 }.effective(), Policy::Pass);
            assert_eq!(PortPolicy { cli: byte, config: byte }.effective(), Policy::Unset);
        }
    }
}
