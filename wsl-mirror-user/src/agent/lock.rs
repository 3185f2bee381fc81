//! The agent's lock: there is one agent in a distribution. The kernel drops the lock with the process.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::report::{self, Report};
use crate::exit::{Exit, Failure, OrExit as _};
use crate::wait;

const DIRECTORY: &str = "/run/wsl-mirror";
/// The file that is locked; open in the agent's process.
pub const PATH: &str = "/run/wsl-mirror/agent.lock";
/// `status` takes the lock briefly to test it. An agent that is shutting down holds it until it exits.
const LIMIT: Duration = Duration::from_secs(1);

/// Held by the agent of this distribution.
#[derive(Debug)]
pub struct AgentLock {
    file: File,
}

impl AgentLock {
    /// Takes the lock; fails if an agent holds it.
    pub fn take() -> Result<Self> {
        let lock = wait::poll(LIMIT, || {
            let Some(file) = open()? else { return Ok(None) };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // An agent that left meanwhile has removed the file: nobody would see a lock on that one.
                Ok(()) => Ok(is_there(&file).then_some(Self { file })),
                Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
                Err(error) => Err(error).or_exit(Exit::Failure, || format!("cannot lock {PATH}")),
            }
        })?;
        lock.ok_or_else(|| {
            let holder =
                report::read().map_or_else(String::new, |report| format!(" (process {})", report.pid));
            Failure::new(
                Exit::Busy,
                format!("`wsl-mirror run` is at work in this distribution already{holder}"),
            )
        })
    }

    /// Writes the report.
    #[expect(clippy::unused_self, reason = "only the holder of the lock may write it")]
    pub fn write(&self, report: &Report) -> Result<()> {
        report::write(report)
    }

    /// Removes report and lock, unless somebody has removed the lock's file: the files there are another agent's then.
    pub fn release(self) {
        if is_there(&self.file) {
            report::remove();
            // The lock last: an agent that finds it gone takes it, and writes a report.
            let _ = fs::remove_file(PATH);
            // The folder stays if somebody else has put something into it.
            let _ = fs::remove_dir(DIRECTORY);
        }
        drop(self.file);
    }
}

/// Opens the file that is locked, and makes it if need be; `None` if its folder went away meanwhile.
fn open() -> Result<Option<File>> {
    let made = fs::DirBuilder::new().mode(0o755).create(DIRECTORY);
    if let Err(error) = made
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(error).or_exit(Exit::Failure, || format!("cannot make {DIRECTORY}"));
    }
    match File::options().write(true).create(true).truncate(false).mode(0o600).open(PATH) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == ErrorKind::NotFound && !Path::new(DIRECTORY).exists() => Ok(None),
        Err(error) => Err(error).or_exit(Exit::Failure, || format!("cannot open {PATH}")),
    }
}

/// Whether this is the file that others find.
fn is_there(lock: &File) -> bool {
    let (Ok(ours), Ok(there)) = (lock.metadata(), fs::metadata(PATH)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Removes what an agent has left that did not end by itself; not if there is one.
pub fn tidy_up() {
    if Path::new(DIRECTORY).exists()
        && let Ok(lock) = AgentLock::take()
    {
        lock.release();
    }
}

/// What the agent of this distribution reports, if there is an agent.
pub fn holder() -> Option<Report> {
    is_held().then(|| report::read().unwrap_or_default())
}

fn is_held() -> bool {
    let Ok(file) = File::open(PATH) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_makes_the_folder_and_keeps_it_for_another_agent() {
        let unit = include_str!("../../../contrib/wsl-mirror.service");
        let made = DIRECTORY.strip_prefix("/run/").unwrap();
        for line in [&format!("RuntimeDirectory={made}"), "RuntimeDirectoryPreserve=yes"] {
            assert!(unit.lines().any(|found| found == line), "{line}");
        }
    }
}
