//! Running programs with a time limit, and telling what happened in words.

use std::{
    fmt,
    io::{Read, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::pace;

/// Enough for every short command the lab runs, on a busy machine too. As all limits here, longer in emulation.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// How long is waited for the end of what a program that has ended has printed, if nothing has come so far.
const OUTPUT_LIMIT: Duration = Duration::from_secs(5);
/// The same for its standard error, where mostly nothing comes.
const ERRORS_LIMIT: Duration = Duration::from_millis(500);

/// A program that has ended: what was run, how it ended, what it said.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command line, as people would type it.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// Itself if the program succeeded, else everything about the failure as an error.
    pub fn success(self) -> Result<Self> {
        if self.status.success() { Ok(self) } else { bail!("{self}") }
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {} after {:?}", self.command, self.status, self.took)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n  {name}: {}", text.trim_end().replace('\n', "\n          "))?;
            }
        }
        Ok(())
    }
}

/// Runs `command` to its end, but no longer than `limit`; failing is not an error here, see
/// [`Finished::success`].
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    run_with_input(command, "", limit)
}

/// The same with something on its standard input.
pub fn run_with_input(command: &mut Command, input: &str, limit: Duration) -> Result<Finished> {
    run_started_by(|command| command.spawn().map_err(Into::into), command, input, limit)
}

/// The same for a command that `start` has to start.
pub(crate) fn run_started_by(
    start: impl FnOnce(&mut Command) -> Result<Child>,
    command: &mut Command,
    input: &str,
    limit: Duration,
) -> Result<Finished> {
    let line = command_line(command);
    let started = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(command).with_context(|| format!("starting `{line}`"))?;
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading its input says why by itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let in_time = wait(&mut child, limit).with_context(|| format!("waiting for `{line}`"))?;
    if !in_time {
        child.kill().with_context(|| format!("killing `{line}`"))?;
    }
    let status = child.wait().with_context(|| format!("waiting for `{line}`"))?;
    let (stdout, stderr) = (collect(stdout, OUTPUT_LIMIT), collect(stderr, ERRORS_LIMIT));
    let finished = Finished { command: line, status, stdout, stderr, took: started.elapsed() };
    if in_time { Ok(finished) } else { bail!("no end within {limit:?}, so it was killed: {finished}") }
}

/// Whether `child` ended within `limit` (longer in emulation).
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<bool> {
    let pid = Pid::from_child(child);
    let pidfd: OwnedFd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    let deadline = Instant::now() + pace::limit(limit);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).context("a time limit too long for poll(2)")?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

/// A program that goes on while the test does; killed on drop, and by the kernel if the thread that started
/// it dies (see [`crate::Namespace::command`]).
#[derive(Debug)]
pub struct Background {
    command: String,
    child: Child,
    stdout: Option<Reader>,
    stderr: Option<Reader>,
    started: Instant,
}

impl Background {
    /// Starts it; what it prints is collected.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let line = command_line(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{line}`"))?;
        let stdout = child.stdout.take().map(read_all);
        let stderr = child.stderr.take().map(read_all);
        Ok(Self { command: line, child, stdout, stderr, started: Instant::now() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, standard error after standard output.
    pub fn output(&self) -> String {
        [&self.stdout, &self.stderr].into_iter().flatten().map(Reader::so_far).collect()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        rustix::process::kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("sending {signal:?} to `{}`", self.command))
    }

    /// Waits for its end.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        if !wait(&mut self.child, limit)? {
            bail!("`{}` did not end within {limit:?}; it has said: {}", self.command, self.output());
        }
        let status = self.child.wait()?;
        Ok(Finished {
            command: self.command.clone(),
            status,
            stdout: collect(self.stdout.take(), OUTPUT_LIMIT),
            stderr: collect(self.stderr.take(), ERRORS_LIMIT),
            took: self.started.elapsed(),
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Reader {
    text: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    thread: thread::JoinHandle<()>,
}

impl Reader {
    fn so_far(&self) -> String {
        self.text.lock().map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> Reader {
    let text = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let shared = std::sync::Arc::clone(&text);
    let thread = thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if let Ok(mut text) = shared.lock() {
                text.extend_from_slice(&buffer[..length]);
            }
        }
    });
    Reader { text, thread }
}

/// What was read, without waiting for somebody else who inherited the pipe (a daemon that was started).
fn collect(reader: Option<Reader>, limit: Duration) -> String {
    let Some(reader) = reader else { return String::new() };
    let (began, inherited) = (Instant::now(), Duration::from_millis(500));
    while !reader.thread.is_finished() && began.elapsed() < limit {
        // On a busy machine the thread that reads may come to it late.
        if began.elapsed() > inherited && !reader.so_far().is_empty() {
            break;
        }
        thread::sleep(Duration::from_micros(200));
    }
    reader.so_far()
}

/// The command line as people would type it.
pub fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        line.push(' ');
        if argument.is_empty() || argument.contains([' ', '"', '\'', '{', ';', '*', '$']) {
            line.push('\'');
            line.push_str(&argument);
            line.push('\'');
        } else {
            line.push_str(&argument);
        }
    }
    line
}

/// Waits for the child of this process that is called so; gives its number. `children` in /proc would say, which not every
/// kernel has (`CONFIG_PROC_CHILDREN`).
pub fn wait_for_child(parent: u32, name: &str) -> Result<String> {
    let stat = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    wait_for(&format!("process {parent} to have a child {name}"), COMMAND_LIMIT, || {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            // PID (NAME) STATE PARENT …
            let Some(stat) = stat(&pid) else { continue };
            let Some((called, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") "))
            else {
                continue;
            };
            if called == name && rest.split(' ').nth(1) == Some(&parent.to_string()) {
                return Ok(Some(pid));
            }
        }
        Ok(None)
    })
}

/// Asks `ready` again and again until it gives a value; past `limit` (longer in emulation) the error says what was
/// awaited.
pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let limit = pace::limit(limit);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = ready().with_context(|| format!("waiting for {what}"))? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}
