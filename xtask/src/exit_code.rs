//! What the shell learns from a task.

use std::process::{ExitCode as ProcessExitCode, Termination};

/// How a task ended. clap itself ends the process with 2 when the command line makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// The task did its work.
    Success,
    /// The task could not be carried out.
    Failed,
    /// A test failed, or demo or bench found a broken promise.
    TestsFailed,
    /// `setup` could not install something, and printed what to do.
    Missing,
}

impl ExitCode {
    const ALL: [Self; 4] = [Self::Success, Self::Failed, Self::TestsFailed, Self::Missing];

    const fn number(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::TestsFailed => 3,
            Self::Missing => 4,
        }
    }

    /// The exit code of a program that ends with these, such as `xtask-lab`. Any other number is a failure.
    pub(crate) fn of(number: Option<i32>) -> Self {
        let same = |code: &Self| number == Some(i32::from(code.number()));
        Self::ALL.into_iter().find(same).unwrap_or(Self::Failed)
    }
}

impl Termination for ExitCode {
    fn report(self) -> ProcessExitCode {
        ProcessExitCode::from(self.number())
    }
}
