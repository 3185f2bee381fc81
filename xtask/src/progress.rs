//! Runs a command whose output nobody wants to read unless it fails.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How often the line on a terminal is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How often a log, which cannot be redrawn, is told that the work still goes on.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// How many lines of the log are shown when a step fails.
const TAIL: usize = 25;

/// Runs one step of a task: its name and its time on the terminal, its output in `log`.
///
/// # Errors
/// Names the command, how it ended and the log, with the end of what the command wrote there.
pub(crate) fn step(task: &str, name: &str, command: &mut Command, log: &Path) -> Result<()> {
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

    let terminal = io::stderr().is_terminal();
    let started = Instant::now();
    if !terminal {
        eprintln!("{task}: {name} …");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("{name}: starting {}", command.get_program().display()))?;
    let mut beat = started;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("{name}: waiting for it"))? {
            break status;
        }
        if terminal {
            let last = tail(log, start, 1);
            let elapsed = started.elapsed().as_secs();
            let line: String =
                format!("{task}: {name} … {elapsed} s  {}", last.trim()).chars().take(78).collect();
            eprint!("\r\x1b[K{line}");
        } else if beat.elapsed() >= HEARTBEAT {
            beat = Instant::now();
            eprintln!("{task}: {name} … {} s", started.elapsed().as_secs());
        }
        thread::sleep(FRAME);
    };
    let end = if status.success() { "done" } else { "failed" };
    let back = if terminal { "\r\x1b[K" } else { "" };
    eprintln!("{back}{task}: {name}: {end} after {:.1} s", started.elapsed().as_secs_f32());
    if !status.success() {
        bail!(
            "{name}: `{}` ended with {status}\n{}\n(all of it is in {})",
            shown(command),
            tail(log, start, TAIL),
            log.display()
        );
    }
    Ok(())
}

/// The command as one would type it, as far as it has no newline in it: a script is known by its step.
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
        let text = step("a task", "try", &mut fails, &log)
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
