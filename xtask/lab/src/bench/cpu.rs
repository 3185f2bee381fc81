//! CPU time of this process, of all that it has started, and of the kernel's threads for packets; and of all others.

use std::{collections::BTreeMap, fs, time::Instant};

use anyhow::{Context as _, Result};
use rustix::param::clock_ticks_per_second;

/// A line of `/proc/PID/stat`, as far as it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    name: String,
    parent: u32,
    /// In clock ticks, user and system: of all its threads, and of the children that it has waited for.
    ticks: u64,
}

/// CPU seconds up to now.
///
/// Client, dockerd, docker-proxy and the containers descend from this process; what else the machine does stays out. Soft
/// interrupts count: the kernel charges them to the task that they interrupt, or run in ksoftirqd. That holds for kernels
/// without `IRQ_TIME_ACCOUNTING`; one that has it charges most soft interrupts to nobody.
pub(super) fn seconds() -> Result<f64> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").context("listing /proc")?.flatten() {
        // A process that ends meanwhile has no file any more.
        if entry.file_name().to_string_lossy().starts_with(|first: char| first.is_ascii_digit())
            && let Ok(line) = fs::read_to_string(entry.path().join("stat"))
        {
            processes.push(parse(&line).with_context(|| format!("not understood: {line}"))?);
        }
    }
    Ok(in_seconds(ticks(&processes, std::process::id())))
}

fn in_seconds(ticks: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact for millions of years")]
    let seconds = ticks as f64 / clock_ticks_per_second() as f64;
    seconds
}

/// A stretch of time in which others may use the machine.
pub(super) struct Others {
    began: Instant,
    own: f64,
    idle: f64,
}

impl Others {
    /// It begins.
    pub(super) fn watch() -> Result<Self> {
        Ok(Self { began: Instant::now(), own: seconds()?, idle: idle()? })
    }

    /// The share of all CPUs that others had since, the hypervisor's other guests among them: 0 to 1.
    pub(super) fn share(&self) -> Result<f64> {
        let cpus = u32::try_from(std::thread::available_parallelism().map_or(1, usize::from))?;
        let all = self.began.elapsed().as_secs_f64() * f64::from(cpus);
        let (own, idle) = (seconds()? - self.own, idle()? - self.idle);
        Ok(((all - own - idle) / all).clamp(0.0, 1.0))
    }
}

/// Seconds for which CPUs had nothing to do, of all of them together.
fn idle() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    idle_ticks(&stat).map(in_seconds).context("/proc/stat has no line for all CPUs")
}

/// `cpu user nice system idle iowait …`
fn idle_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().collect();
    Some(fields.get(3)?.parse::<u64>().ok()? + fields.get(4)?.parse::<u64>().ok()?)
}

/// `PID (name) state ppid …`, utime, stime, cutime and cstime being fields 14 to 17. A name may hold blanks and parentheses.
fn parse(line: &str) -> Option<Process> {
    let (id, rest) = line.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|ticks| ticks.parse::<u64>()).sum::<Result<_, _>>().ok()?;
    Some(Process { id: id.parse().ok()?, name: name.to_owned(), parent: fields.get(1)?.parse().ok()?, ticks })
}

/// Of a process, its descendants, and ksoftirqd.
fn ticks(processes: &[Process], root: u32) -> u64 {
    let parents: BTreeMap<u32, u32> = processes.iter().map(|process| (process.id, process.parent)).collect();
    let descends = |process: &Process| {
        let mut ancestors = std::iter::successors(Some(process.id), |id| parents.get(id).copied());
        ancestors.any(|id| id == root)
    };
    let counts = |process: &&Process| process.name.starts_with("ksoftirqd/") || descends(process);
    processes.iter().filter(counts).map(|process| process.ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_blanks_and_parentheses() {
        let line = "812 (a (b) c) S 811 1 1 0 -1 4194304 100 0 0 0 30 12 7 5 20 0 1 0 5 0 0\n";
        let process = Process { id: 812, name: "a (b) c".to_owned(), parent: 811, ticks: 54 };
        assert_eq!(parse(line), Some(process));
        assert_eq!(parse("812 (cut"), None);
    }

    #[test]
    fn descendants_and_the_kernels_threads_count() {
        let process = |id, name: &str, parent, ticks| Process { id, name: name.to_owned(), parent, ticks };
        let processes = [
            process(1, "init", 0, 1),
            process(2, "ksoftirqd/0", 0, 10),
            process(5, "xtask-lab", 1, 100),
            process(6, "dockerd", 5, 1000),
            process(7, "docker-proxy", 6, 10_000),
            process(8, "rustc", 1, 100_000),
        ];
        assert_eq!(ticks(&processes, 5), 11_110);
    }

    #[test]
    fn waiting_for_a_disk_is_idle() {
        assert_eq!(idle_ticks("cpu  10 20 30 40 5 0 7 8 0 0\ncpu0 5 10 15 20 2 0 3 4 0 0\n"), Some(45));
        assert_eq!(idle_ticks("intr 1\n"), None);
    }

    #[test]
    fn work_of_this_process_counts() {
        let before = seconds().unwrap_or_else(|error| panic!("{error:#}"));
        let mut sum = 0_u64;
        while seconds().unwrap_or_else(|error| panic!("{error:#}")) < before + 0.05 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
