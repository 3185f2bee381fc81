//! Exit codes, and errors that carry one.

use std::fmt;
use std::process::ExitCode;

/// Why a command ended. The numbers are part of the interface: they are in `--help` and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Something that has no number of its own.
    Failure = 1,
    /// The command line was not understood (clap's own number).
    Usage = 2,
    /// `status`: nothing is loaded.
    NotLoaded = 3,
    /// `status`: loaded, but the interface is gone or was made anew: nothing is steered.
    NotAttached = 4,
    /// Root is needed.
    NotRoot = 5,
    /// The configuration cannot be read or says something impossible.
    Config = 6,
    /// There is no such interface.
    NoInterface = 7,
    /// bpffs is not mounted and cannot be mounted.
    NoBpffs = 8,
    /// A part of the pin path could have been made by somebody else than root.
    UnsafePinPath = 9,
    /// The pins are of a layout that this release does not know, or of a newer one.
    UnknownLayout = 10,
    /// The kernel has no BTF.
    NoBtf = 11,
    /// The kernel has no conntrack kfuncs.
    NoKfuncs = 12,
    /// The kernel's conntrack is a module: its kfuncs are out of reach.
    ConntrackModule = 13,
    /// Another wsl-mirror is at work: an agent, or one that does not finish.
    Busy = 14,
    /// Loaded already, on another interface or by another hook.
    OtherInterface = 15,
    /// The kernel refused a program, map, link or filter.
    Kernel = 16,
    /// `install`, `mode`: this is not WSL.
    NotWsl = 17,
    /// `mode`: WSL, but in a networking mode that has no `loopback0`.
    NotMirrored = 18,
    /// `install`, `uninstall`: something is there that is not understood, or somebody else's.
    NotUnderstood = 19,
    /// Another distribution's wsl-mirror steers the interface.
    OtherDistribution = 20,
}

impl Exit {
    /// All of them with what they mean, for `--help`.
    pub const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Success, "done"),
        (Self::Failure, "failed for a reason that has no number of its own"),
        (Self::Usage, "the command line was not understood"),
        (Self::NotLoaded, "status, policy, exempt, log: nothing is loaded"),
        (
            Self::NotAttached,
            "status: loaded, but the interface is gone, was made anew, or the program was detached",
        ),
        (Self::NotRoot, "root is needed"),
        (Self::Config, "the configuration cannot be read or says something impossible"),
        (Self::NoInterface, "there is no such interface"),
        (Self::NoBpffs, "bpffs is not mounted and cannot be mounted"),
        (Self::UnsafePinPath, "part of the pin path could have been made by somebody else than root"),
        (Self::UnknownLayout, "the pins are of an unknown or newer layout"),
        (Self::NoBtf, "the kernel has no BTF"),
        (Self::NoKfuncs, "the kernel has no conntrack kfuncs"),
        (Self::ConntrackModule, "the kernel's conntrack is a module"),
        (Self::Busy, "another wsl-mirror is at work: `run` stays, or something does not finish"),
        (Self::OtherInterface, "loaded already, on another interface or by another hook"),
        (Self::Kernel, "the kernel refused a program, map, link or filter"),
        (Self::NotWsl, "install, mode: this is not WSL"),
        (Self::NotMirrored, "mode: WSL, in a networking mode that has no loopback0"),
        (
            Self::NotUnderstood,
            "install, uninstall: something is there that is not understood, or somebody else's",
        ),
        (Self::OtherDistribution, "another distribution's wsl-mirror steers the interface already"),
    ];

    /// What another try does not mend: no root, a bad configuration, pins or a kernel that do not fit. The unit's
    /// `RestartPreventExitStatus=` are the same.
    const PERMANENT: [Self; 12] = [
        Self::Usage,
        Self::NotRoot,
        Self::Config,
        Self::NoBpffs,
        Self::UnsafePinPath,
        Self::UnknownLayout,
        Self::NoBtf,
        Self::NoKfuncs,
        Self::ConntrackModule,
        Self::OtherInterface,
        Self::NotWsl,
        Self::NotMirrored,
    ];

    /// Whether another try, later, may come to another end.
    pub fn is_retryable(self) -> bool {
        !Self::PERMANENT.contains(&self)
    }

    /// The table as text, for `--help`.
    pub fn help() -> String {
        use fmt::Write as _;
        Self::TABLE.iter().fold(String::from("Exit codes:\n"), |mut text, (exit, meaning)| {
            let _ = writeln!(text, "  {:>2}  {meaning}", *exit as u8);
            text
        })
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that decides the exit code. It may stand anywhere in a chain of causes.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What was attempted, on what, and what to do next.
    pub message: String,
}

impl Failure {
    /// An error with this code and message.
    #[expect(clippy::new_ret_no_self, reason = "it is only ever made to be returned as an error")]
    pub fn new(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { exit, message: message.into() })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Gives a result's error an exit code and says what was attempted.
pub trait OrExit<T> {
    /// The error, as the cause of a [`Failure`].
    fn or_exit(self, exit: Exit, message: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit, message: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|error| error.into().context(Failure { exit, message: message() }))
    }
}

/// The exit code that an error asks for.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    // A context is found by downcasting the error itself, a cause by walking the chain.
    error
        .downcast_ref::<Failure>()
        .or_else(|| error.chain().find_map(|cause| cause.downcast_ref::<Failure>()))
        .map_or(Exit::Failure, |failure| failure.exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_exit_code_is_found_wherever_it_stands_in_the_chain() {
        let inner: anyhow::Result<()> = Err(Failure::new(Exit::NoBtf, "no BTF"));
        assert_eq!(exit_of(&inner.context("outer").unwrap_err()), Exit::NoBtf);
        let outer: anyhow::Result<()> =
            Err(std::io::Error::other("cause")).or_exit(Exit::Busy, || "busy".into());
        let outer = outer.context("further out").unwrap_err();
        assert_eq!(exit_of(&outer), Exit::Busy);
        assert_eq!(format!("{outer:#}"), "further out: busy: cause");
        assert_eq!(exit_of(&anyhow::anyhow!("plain")), Exit::Failure);
    }

    #[test]
    fn permanent_exit_codes_are_those_of_the_unit() {
        let unit = include_str!("../../contrib/wsl-mirror.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).unwrap();
        let in_unit: Vec<u8> = line.split(' ').map(|code| code.parse().unwrap()).collect();
        assert_eq!(Exit::PERMANENT.map(|exit| exit as u8), *in_unit);
        assert!(Exit::Kernel.is_retryable() && !Exit::Config.is_retryable());
    }

    #[test]
    fn every_code_is_documented_once_in_order() {
        for (index, (exit, _)) in Exit::TABLE.iter().enumerate() {
            assert_eq!(*exit as usize, index);
        }
    }
}
