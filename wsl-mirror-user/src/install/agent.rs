//! The agent that is at work in this distribution: which process it is, ending it, and starting it again.
//!
//! For where no systemd does that: nobody but the agent's own lock tells of it there.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::wsl_conf::LOG;
use crate::agent::lock;
use crate::wait;

/// What the kernel puts behind the path of a file that is gone.
const GONE: &[u8] = b" (deleted)";
/// How long it may take to end: a round that reads the packet filters comes to its end before. The unit's
/// `TimeoutStopSec=` is the same.
const END_LIMIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How long a new one is watched for an early end.
const START_LIMIT: Duration = Duration::from_secs(10);

/// An agent that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process.
    pub pid: i32,
    /// The path of its program, if that is another file by now: there was an upgrade.
    pub replaced: Option<PathBuf>,
}

impl Running {
    /// The one that has the seat, if somebody has it; root's eyes are needed to see it.
    pub fn find() -> Option<Self> {
        let says = lock::holder()?.pid.cast_signed();
        // It has the seat before it says so.
        let all = procfs::process::all_processes().into_iter().flatten().flatten().map(|process| process.pid);
        let own = Pid::as_raw(Some(rustix::process::getpid()));
        let pid =
            [says].into_iter().chain(all).find(|pid| *pid > 0 && *pid != own && holds_the_lock(*pid))?;
        Some(Self { pid, replaced: replaced(pid) })
    }
}

/// Whether a process has the agent's lock open. Its number alone says nothing: the report may be an old one's.
fn holds_the_lock(pid: i32) -> bool {
    let file = |found: fs::Metadata| (found.dev(), found.ino());
    let Ok(locked) = fs::metadata(lock::PATH).map(file) else { return false };
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|fd| fs::metadata(fd.path()).is_ok_and(|found| file(found) == locked))
}

fn replaced(pid: i32) -> Option<PathBuf> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    was_replaced(&program).filter(|path| path.is_file())
}

/// The path of a program that is gone, by what `/proc/PID/exe` leads to. An upgrade puts a new file there: the old one
/// cannot be written to while it runs.
fn was_replaced(program: &Path) -> Option<PathBuf> {
    let path = program.as_os_str().as_bytes().strip_suffix(GONE)?;
    Some(std::ffi::OsString::from_vec(path.to_owned()).into())
}

/// Ends it as systemd would, and waits for its end. What it has loaded goes on steering.
pub fn end(pid: i32) -> Result<()> {
    let Some(number) = Pid::from_raw(pid) else { bail!("{pid} is no process") };
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        found => found.with_context(|| format!("cannot look at process {pid}"))?,
    };
    // From here on the number is nobody else's; before, it may have become that.
    if !holds_the_lock(pid) {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot end process {pid}")),
    }
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&END_LIMIT)) {
            Ok(0) => bail!("process {pid} does not end; `kill {pid}` once more, then `wsl-mirror unload`"),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot wait for the end of process {pid}"));
            }
        }
    }
}

/// Has the program that is at this path now take its place, called in the same way.
pub fn restart(pid: i32, program: &Path) -> Result<()> {
    let called = fs::read(format!("/proc/{pid}/cmdline"))
        .with_context(|| format!("cannot read how process {pid} was called"))?;
    let arguments = arguments(&called);
    let log = || -> io::Result<File> { File::options().append(true).create(true).open(LOG) };
    let (out, errors) = (log().with_context(|| format!("cannot write {LOG}"))?, log()?);
    end(pid)?;
    // Like one that WSL's boot command has started: in the background, without the terminal or the environment of whoever
    // upgrades.
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(out).stderr(errors);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    // An agent that has not reported by then goes on all the same.
    wait::poll(START_LIMIT, || {
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended ({status}): {LOG} says why", program.display());
        }
        let reports = lock::holder().is_some_and(|report| report.pid == child.id());
        Ok(reports.then_some(()))
    })?;
    Ok(())
}

/// What stands behind the program's name in `/proc/PID/cmdline`.
fn arguments(called: &[u8]) -> Vec<std::ffi::OsString> {
    let all = called.strip_suffix(b"\0").unwrap_or(called).split(|byte| *byte == 0);
    all.skip(1).map(|argument| std::ffi::OsString::from_vec(argument.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_agent_is_recognised_and_called_as_before() {
        let replaced = |path: &str| was_replaced(Path::new(path));
        assert_eq!(replaced("/usr/sbin/wsl-mirror"), None);
        assert_eq!(replaced("/usr/sbin/wsl-mirror (deleted)"), Some("/usr/sbin/wsl-mirror".into()));
        assert_eq!(arguments(b"wsl-mirror\0run\0--cgroup\0/a b\0"), ["run", "--cgroup", "/a b"]);
        assert_eq!(arguments(b"wsl-mirror\0run\0--mark\0\0"), ["run", "--mark", ""]);
    }

    #[test]
    fn a_process_without_the_agents_lock_is_not_ended() {
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        end(other.id().cast_signed()).unwrap();
        assert_eq!(other.try_wait().unwrap(), None, "it runs on");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
