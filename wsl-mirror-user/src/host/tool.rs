//! Other people's programs that tell us about the machine: found at fixed places, given a bounded time.

use std::io::Read;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::wait;

/// Where a program may be. `PATH` is somebody else's, and we are root.
const DIRECTORIES: [&str; 7] = [
    "/usr/sbin",
    "/sbin",
    "/usr/bin",
    "/bin",
    "/usr/local/sbin",
    "/run/current-system/sw/sbin",
    "/run/current-system/sw/bin",
];
/// How long one may take. The longest seen: half a second for `nft` in an emulated machine.
const RUN_LIMIT: Duration = Duration::from_secs(5);
/// The longest output that is read. Ten thousand rules are some 5 MB as nft's JSON.
const OUTPUT_MAX: usize = 32 << 20;
/// How much of what it complains about is passed on.
const COMPLAINT_MAX: usize = 200;

/// Why a program told us nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is not installed.
    NotInstalled,
    /// It failed, or took too long, or said too much.
    Failed(String),
}

/// Where a program is.
pub fn find(name: &str) -> Option<PathBuf> {
    find_in(Path::new("/"), name)
}

/// The same below a folder.
pub fn find_in(root: &Path, name: &str) -> Option<PathBuf> {
    let below = |directory: &&str| root.join(directory.trim_start_matches('/')).join(name);
    DIRECTORIES.iter().map(below).find(|path| path.is_file())
}

/// Runs a program to its end and gives what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, Unread> {
    run_for(RUN_LIMIT, program, arguments)
}

/// The same of one that has work to do, and may take as long as this.
pub fn run_for(limit: Duration, program: &str, arguments: &[&str]) -> Result<String, Unread> {
    start(&find(program).ok_or(Unread::NotInstalled)?, program, arguments, limit)
}

/// Runs the program at this path, by this name.
pub fn run_path(path: &Path, name: &str, arguments: &[&str]) -> Result<String, Unread> {
    start(path, name, arguments, RUN_LIMIT)
}

fn start(path: &Path, name: &str, arguments: &[&str], limit: Duration) -> Result<String, Unread> {
    let failed = |what: String| Unread::Failed(format!("{name} {what}"));
    let mut command = Command::new(path);
    command.arg0(name).args(arguments).env_clear().env("LC_ALL", "C").env("PATH", DIRECTORIES.join(":"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| failed(format!("does not start: {error}")))?;
    watch(child, Instant::now() + limit, OUTPUT_MAX).map_err(failed)
}

/// Reads what a child prints and waits for its end; one that does not come to its end is killed.
fn watch(mut child: Child, deadline: Instant, longest: usize) -> Result<String, String> {
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let read = read_both(&mut child, deadline, longest, &mut printed, &mut complained);
    let ended = read.and_then(|()| {
        let left = deadline.saturating_duration_since(Instant::now());
        let status = wait::poll(left, || child.try_wait().context("cannot be waited for"));
        status.map_err(|error| format!("{error:#}"))?.ok_or_else(|| "takes too long".to_owned())
    });
    if ended.is_err() {
        // Dead or not, it shall not stay a zombie.
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended?;
    if !status.success() {
        let complaint = String::from_utf8_lossy(&complained);
        let first = complaint.lines().find(|line| !line.trim().is_empty()).unwrap_or("not a word");
        return Err(format!("failed ({status}): {}", first.chars().take(COMPLAINT_MAX).collect::<String>()));
    }
    String::from_utf8(printed).map_err(|_| "printed something that is no text".to_owned())
}

/// Reads both pipes until their ends.
fn read_both(
    child: &mut Child,
    deadline: Instant,
    longest: usize,
    printed: &mut Vec<u8>,
    complained: &mut Vec<u8>,
) -> Result<(), String> {
    let mut output = child.stdout.take();
    let mut errors = child.stderr.take();
    let mut buffer = vec![0; 1 << 16];
    while output.is_some() || errors.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("takes too long".to_owned());
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut waited: Vec<PollFd<'_>> = Vec::new();
        waited.extend(output.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        waited.extend(errors.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        match poll(&mut waited, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("cannot be waited for: {error}")),
        }
        let mut ready = waited.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
        let output_ready = output.is_some() && ready.next() == Some(true);
        let errors_ready = errors.is_some() && ready.next() == Some(true);
        if output_ready && !read_some(output.as_mut(), &mut buffer, printed)? {
            output = None;
        }
        if errors_ready && !read_some(errors.as_mut(), &mut buffer, complained)? {
            errors = None;
        }
        if printed.len() > longest {
            return Err(format!("prints more than {longest} bytes"));
        }
        complained.truncate(longest);
    }
    Ok(())
}

/// Whether there may be more.
fn read_some(pipe: Option<&mut impl Read>, buffer: &mut [u8], into: &mut Vec<u8>) -> Result<bool, String> {
    let Some(pipe) = pipe else { return Ok(false) };
    match pipe.read(buffer) {
        Ok(0) => Ok(false),
        Ok(length) => {
            into.extend_from_slice(&buffer[..length]);
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration, longest: usize) -> Result<String, String> {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        watch(child, Instant::now() + limit, longest)
    }

    #[test]
    fn a_missing_program_is_told_from_a_failing_one() {
        assert_eq!(run("no-such-program-of-anybody", &[]), Err(Unread::NotInstalled));
        let Err(Unread::Failed(why)) = run("sh", &["-c", "echo no such table >&2; exit 3"]) else { panic!() };
        assert!(why.starts_with("sh failed") && why.ends_with(": no such table"), "{why}");
        assert_eq!(run("sh", &["-c", "echo $LC_ALL$HOME"]), Ok("C\n".into()), "nothing of our environment");
    }

    #[test]
    fn a_program_that_hangs_or_prints_too_much_is_killed() {
        let start = Instant::now();
        let limit = Duration::from_millis(200);
        assert_eq!(shell("sleep 20", limit, 100), Err("takes too long".into()));
        assert_eq!(shell("exec >&- 2>&-; sleep 20", limit, 100), Err("takes too long".into()), "silently");
        assert_eq!(shell("yes", Duration::from_secs(9), 100), Err("prints more than 100 bytes".into()));
        assert!(start.elapsed() < Duration::from_secs(9));
        let long = shell("yes | head -c 300000; yes | head -c 300000 >&2", Duration::from_secs(9), 1 << 20);
        assert_eq!(long.map(|text| text.len()), Ok(300_000));
    }
}
