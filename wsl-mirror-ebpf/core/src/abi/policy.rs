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
    /// Take flows straight to the container behind the port.
    Direct = 3,
}

impl Policy {
    /// The policy that this byte stands for.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Pass,
            2 => Self::Steer,
            3 => Self::Direct,
            _ => Self::Unset,
        }
    }

    /// `unset`, `pass`, `steer` or `direct`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Pass => "pass",
            Self::Steer => "steer",
            Self::Direct => "direct",
        }
    }
}

/// Which of two ways a port's flows take, where both are open.
///
/// Maps hold it as a plain number: an unknown number counts as [`Path::Unset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Path {
    /// No choice: the global path counts. As the global path, [`Path::Auto`].
    Unset = 0,
    /// A proxy's port goes to the proxy. A holder's port passes, or goes direct where the engine's own rules would drop it.
    Auto = 1,
    /// To the container wherever it is known.
    Direct = 2,
    /// Never straight to the container.
    Proxy = 3,
}

impl Path {
    /// The path that this byte stands for.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Auto,
            2 => Self::Direct,
            3 => Self::Proxy,
            _ => Self::Unset,
        }
    }

    /// `unset`, `auto`, `direct` or `proxy`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Proxy => "proxy",
        }
    }
}

/// Value of `PORT_POLICY` (hash): what the user wrote about a port, by where it was written.
///
/// Each writer has its own field, so that neither undoes the other; the command line is the stronger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortPolicy {
    /// A [`Policy`] written by `wsl-mirror policy` and `exempt` (or by bpftool).
    pub cli: u8,
    /// A [`Policy`] written by `wsl-mirror load` from the configuration file.
    pub config: u8,
    /// A [`Path`] written by `wsl-mirror load` from the configuration file.
    pub path: u8,
    /// [`Self::NEVER_SENT`] or 0, written by `wsl-mirror load` from the configuration file.
    pub flags: u8,
}

impl PortPolicy {
    /// Of `flags`: Windows never sends the port's traffic to Linux (UDP alone; TCP connections stay on `lo` on any port).
    pub const NEVER_SENT: u8 = 1;

    /// Whether Windows never sends the port's traffic to Linux.
    #[inline(always)]
    pub const fn is_never_sent(self) -> bool {
        self.flags & Self::NEVER_SENT != 0
    }

    /// The policy in force: the command line's, else the file's.
    #[inline(always)]
    pub const fn effective(self) -> Policy {
        match Policy::from_byte(self.cli) {
            Policy::Unset => Policy::from_byte(self.config),
            cli => cli,
        }
    }

    /// The port's own path.
    #[inline(always)]
    pub const fn path(self) -> Path {
        Path::from_byte(self.path)
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
        let policy = |cli, config| PortPolicy { cli, config, ..PortPolicy::default() }.effective();
        assert_eq!(policy(0, 0), Policy::Unset);
        assert_eq!(policy(0, 1), Policy::Pass);
        assert_eq!(policy(2, 1), Policy::Steer);
        assert_eq!(policy(1, 2), Policy::Pass);
        assert_eq!(policy(3, 1), Policy::Direct);
    }

    #[test]
    fn an_unknown_byte_counts_as_unset() {
        for byte in 4..=u8::MAX {
            let policy = PortPolicy { cli: byte, config: 1, path: byte, flags: 0 };
            assert_eq!((policy.effective(), policy.path()), (Policy::Pass, Path::Unset));
            assert_eq!(PortPolicy { config: byte, ..policy }.effective(), Policy::Unset);
        }
    }
}
