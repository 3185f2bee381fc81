//! What the agent tells `wsl-mirror status`: a file, and a lock on another one for as long as it runs. Both belong to the
//! distribution, as the pins do.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
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
/// A `status` has the lock for some microseconds, to see who has it.
const PATIENCE: Duration = Duration::from_millis(200);

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
}

/// Held by the agent of this distribution; there is one.
#[derive(Debug)]
pub struct Seat {
    lock: File,
}

impl Seat {
    /// Takes it; fails if it is taken.
    pub fn take() -> Result<Self> {
        let done = fs::DirBuilder::new().mode(0o755).create(DIRECTORY);
        if let Err(error) = done
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error).or_exit(Exit::Failure, || format!("cannot make {DIRECTORY}"));
        }
        let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(LOCK);
        let lock = lock.or_exit(Exit::Failure, || format!("cannot open {LOCK}"))?;
        let start = Instant::now();
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
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

    /// Nothing is left of it.
    pub fn leave(self) {
        // The folder stays if somebody else has put something into it.
        let _ = fs::remove_file(REPORT);
        let _ = fs::remove_file(LOCK);
        let _ = fs::remove_dir(DIRECTORY);
        drop(self.lock);
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
