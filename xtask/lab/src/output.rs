//! Standard output.

use std::io::{ErrorKind, Write as _};

use anyhow::Result;

/// Writes to standard output; styles are left out unless that is a terminal that wants them. A reader that
/// went away is no failure: the verdict is in the exit code.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(anstream::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}
