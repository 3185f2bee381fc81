//! The changes that `install` and `uninstall` make.

use std::fmt;
use std::path::PathBuf;

use similar::TextDiff;

use super::unit;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file gets another text, or goes.
    File {
        /// Which, in the distribution.
        path: &'static str,
        /// Its text, if it is there.
        before: Option<String>,
        /// Its text, if it stays.
        after: Option<String>,
    },
    /// The unit is started at boot.
    Enable {
        /// What the link is to.
        unit: PathBuf,
    },
    /// It is no more.
    Disable,
    /// The running systemd is told.
    Systemctl(&'static [&'static str]),
    /// The agent ends, where systemd does not end it.
    End {
        /// Its process.
        pid: i32,
    },
    /// The program that has taken the place of the agent's runs instead, where systemd does not see to it.
    Restart {
        /// The agent's process.
        pid: i32,
        /// Where the program is.
        program: PathBuf,
    },
}

impl Step {
    /// Whether it is about what runs, not about what is written down.
    pub fn is_about_now(&self) -> bool {
        matches!(self, Self::Systemctl(_) | Self::End { .. } | Self::Restart { .. })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, before, after } => {
                let name = |text: &Option<String>| if text.is_some() { *path } else { "/dev/null" };
                let (old, new) =
                    (before.as_deref().unwrap_or_default(), after.as_deref().unwrap_or_default());
                let diff = TextDiff::from_lines(old, new);
                let diff = diff.unified_diff().header(name(before), name(after)).to_string();
                f.write_str(diff.trim_end_matches('\n'))
            }
            Self::Enable { unit } => write!(f, "link {} -> {}", unit::BOOT_LINK, unit.display()),
            Self::Disable => write!(f, "remove {}", unit::BOOT_LINK),
            Self::Systemctl(arguments) => write!(f, "systemctl {}", arguments.join(" ")),
            Self::End { pid } => write!(f, "end the agent (process {pid})"),
            Self::Restart { pid, program } => {
                write!(f, "restart the agent (process {pid}): {} was replaced", program.display())
            }
        }
    }
}
