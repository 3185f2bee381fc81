//! What the agent tells `wsl-mirror status`: a file, and a lock on another one for as long as it runs. Both belong to the
//! distribution, as the pins do.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure, OrExit as _};

const DIRECTORY: &str = "/run/wsl-mirror";
/// Open in the process that has the seat.
pub const LOCK: &str = "/run/wsl-mirror/agent.lock";
const REPORT: &str = "/run/wsl-mirror/agent.json";
const NEW: &str = "/run/wsl-mirror/agent.json.new";
/// A `status` has the lock for some microseconds, to see who has it; an agent that was told to end has it until it has.
const PATIENCE: Duration = Duration::from_secs(1);

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its process.
    pub pid: u32,
    /// `steering`, `waiting` (for the interface), `aside` (another distribution steers) or `failing`.
    pub state: String,
    /// The same in words.
    pub says: String,
    /// Why the configuration, as it is now, is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_error: Option<String>,
    /// What is not as it should be, although it goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Held by the agent of this distribution; there is one.
#[derive(Debug)]
pub struct Seat {
    lock: File,
}

impl Seat {
    /// Takes it; fails if it is taken.
    pub fn take() -> Result<Self> {
        let start = Instant::now();
        loop {
            let Some(lock) = open()? else { continue };
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                // Whoever left while we waited has taken the file with it: nobody would see a lock on that one.
                Ok(()) if !is_there(&lock) => {}
                Ok(()) => return Ok(Self { lock }),
                Err(Errno::WOULDBLOCK | Errno::INTR) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => {
                    let who = read().map_or_else(String::new, |report| format!(" (process {})", report.pid));
                    return Err(Failure::new(
                        Exit::Busy,
                        format!("`wsl-mirror run` is at work in this distribution already{who}"),
                    ));
                }
                Err(error) => return Err(error).or_exit(Exit::Failure, || format!("cannot lock {LOCK}")),
            }
        }
    }

    /// Writes the report, in one stroke.
    #[expect(clippy::unused_self, reason = "only who has the seat may write it")]
    pub fn write(&self, report: &Report) -> Result<()> {
        let mut file = File::create(NEW).with_context(|| format!("cannot write {NEW}"))?;
        file.write_all(serde_json::to_string(report)?.as_bytes())
            .with_context(|| format!("cannot write {NEW}"))?;
        fs::rename(NEW, REPORT).with_context(|| format!("cannot rename {NEW} to {REPORT}"))
    }

    /// Nothing is left of it, unless somebody has taken its file away: what is there then is another one's.
    pub fn leave(self) {
        if is_there(&self.lock) {
            // The lock last: whoever finds it gone has the seat, and writes a report.
            for path in [REPORT, NEW, LOCK] {
                let _ = fs::remove_file(path);
            }
            // The folder stays if somebody else has put something into it.
            let _ = fs::remove_dir(DIRECTORY);
        }
        drop(self.lock);
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
    match File::options().write(true).create(true).truncate(false).mode(0o600).open(LOCK) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == ErrorKind::NotFound && !Path::new(DIRECTORY).exists() => Ok(None),
        Err(error) => Err(error).or_exit(Exit::Failure, || format!("cannot open {LOCK}")),
    }
}

/// Whether this is the file that others find.
fn is_there(lock: &File) -> bool {
    let (Ok(ours), Ok(there)) = (lock.metadata(), fs::metadata(LOCK)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Takes away what an agent has left that did not end by itself; not if there is one.
pub fn tidy_up() {
    if Path::new(DIRECTORY).exists()
        && let Ok(seat) = Seat::take()
    {
        seat.leave();
    }
}

fn read() -> Option<Report> {
    serde_json::from_str(&fs::read_to_string(REPORT).ok()?).ok()
}

/// What the agent of this distribution says, if there is one.
pub fn of_the_running_one() -> Option<Report> {
    is_taken(Path::new(LOCK)).then(|| read().unwrap_or_default())
}

fn is_taken(lock: &Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_makes_the_folder_and_does_not_take_it_away_with_another_agents_seat() {
        let unit = include_str!("../../../contrib/wsl-mirror.service");
        let made = DIRECTORY.strip_prefix("/run/").unwrap();
        for line in [&format!("RuntimeDirectory={made}"), "RuntimeDirectoryPreserve=yes"] {
            assert!(unit.lines().any(|found| found == line), "{line}");
        }
    }
}
