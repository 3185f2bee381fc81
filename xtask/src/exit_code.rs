//! What the shell learns from a task.

use std::process::{ExitCode as ProcessExitCode, Termination};

/// How a task ended. clap itself ends the process with 2 when the command line makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// Everything that was asked for happened.
    Success,
    /// The task could not be carried out.
    Failed,
    /// The tests ran, and at least one failed; or demo or bench found something that is not as promised.
    TestsFailed,
    /// Something is missing that `setup` could not install; what to do was printed.
    Missing,
}

impl Termination for ExitCode {
    fn report(self) -> ProcessExitCode {
        ProcessExitCode::from(match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::TestsFailed => 3,
            Self::Missing => 4,
        })
    }
}
