//! What a task does right now, on standard error: one line that lives on a terminal, plain lines in a pipe.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How often the line on a terminal is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How often a pipe, which cannot be redrawn, hears that the work goes on.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// How many characters the line on a terminal has at most.
const WIDTH: usize = 79;
/// How many lines of the log are shown when a command fails.
const TAIL: usize = 25;

/// One step, as it goes on.
#[derive(Debug)]
pub struct Step {
    detail: Mutex<String>,
}

impl Step {
    /// Says how far the step is.
    pub fn set(&self, detail: String) {
        if let Ok(mut shown) = self.detail.lock() {
            *shown = detail;
        }
    }

    fn detail(&self) -> String {
        self.detail.lock().map(|detail| detail.clone()).unwrap_or_default()
    }
}

/// Does `work`, and shows it by name. The work stays on the calling thread: its children die with that thread.
pub fn step<T>(name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let terminal = io::stderr().is_terminal();
    let started = Instant::now();
    let step = Step { detail: Mutex::default() };
    if !terminal {
        eprintln!("{name} …");
    }
    let result = thread::scope(|scope| {
        let (done, until_done) = mpsc::channel::<()>();
        let shown = &step;
        scope.spawn(move || {
            let pause = if terminal { FRAME } else { HEARTBEAT };
            while until_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let line = format!("{name} … {} s  {}", started.elapsed().as_secs(), shown.detail());
                if terminal {
                    let line: String = format!("  {line}").chars().take(WIDTH).collect();
                    eprint!("\r\x1b[K{line}");
                } else {
                    eprintln!("{}", line.trim_end());
                }
            }
        });
        let result = work(shown);
        drop(done);
        result
    });
    let seconds = started.elapsed().as_secs_f32();
    match (terminal, result.is_ok()) {
        (true, true) => eprintln!("\r\x1b[K✓ {name}  {seconds:.1} s"),
        (true, false) => eprintln!("\r\x1b[K✗ {name}  {seconds:.1} s"),
        (false, true) => eprintln!("{name}: done after {seconds:.1} s"),
        (false, false) => eprintln!("{name}: failed after {seconds:.1} s"),
    }
    result
}

/// Runs a command whose output nobody reads unless it fails: its last line on the terminal, all of it in `log`.
///
/// # Errors
/// Names the command, its exit status and the log, with the end of the command's output.
pub(crate) fn command(task: &str, name: &str, command: &mut Command, log: &Path) -> Result<()> {
    let open = || -> io::Result<(File, u64)> {
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(log)?;
        writeln!(file, "\n== {name}\n$ {}", shown(command))?;
        let start = file.seek(SeekFrom::End(0))?;
        Ok((file, start))
    };
    let (file, start) = open().with_context(|| format!("opening the log {}", log.display()))?;
    let stderr = file.try_clone().with_context(|| format!("opening the log {} twice", log.display()))?;
    step(&format!("{task}: {name}"), |step| {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("{name}: starting {}", command.get_program().display()))?;
        let status = loop {
            if let Some(status) = child.try_wait().with_context(|| format!("{name}: waiting for it"))? {
                break status;
            }
            step.set(tail(log, start, 1).trim().to_owned());
            thread::sleep(FRAME);
        };
        if !status.success() {
            bail!(
                "{name}: `{}` ended with {status}\n{}\n(all of it is in {})",
                shown(command),
                tail(log, start, TAIL),
                log.display()
            );
        }
        Ok(())
    })
}

/// The command as one would type it. A script with a newline in it is known by its step.
fn shown(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words = words.map(|word| word.to_string_lossy());
    words.map(|word| if word.contains('\n') { "…".into() } else { word }).collect::<Vec<_>>().join(" ")
}

/// The last lines of the log, and nothing from before `start`, which other steps wrote.
fn tail(log: &Path, start: u64, lines: usize) -> String {
    const ENOUGH: u64 = 8192;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(ENOUGH))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_log_and_shows_its_end() {
        let log = std::env::temp_dir().join(format!("wsl-mirror-xtask-{}.log", std::process::id()));
        let mut fails = Command::new("sh");
        fails.args(["-c", "echo before; echo the reason >&2; exit 7"]);
        let text = command("a task", "try", &mut fails, &log)
            .map_or_else(|error| format!("{error:#}"), |()| String::new());
        std::fs::remove_file(&log).unwrap_or_else(|error| panic!("removing {}: {error}", log.display()));
        assert!(text.contains("before\nthe reason"), "{text}");
        assert!(
            text.contains("`sh -c echo before; echo the reason >&2; exit 7` ended with exit status: 7"),
            "{text}"
        );
        assert!(text.contains(&log.display().to_string()), "{text}");
    }
}
