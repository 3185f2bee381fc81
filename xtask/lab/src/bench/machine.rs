//! What was measured on, and when.

use std::{fs, process::Command};

/// Facts that every number needs beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    processor: String,
    cpus: usize,
    kernel: String,
    /// YYYY-MM-DD, UTC.
    date: String,
    /// Load average of one minute before the measurement.
    load: String,
}

impl Machine {
    /// This one, now.
    pub(super) fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let first = |text: String| text.split_whitespace().next().unwrap_or("unknown").to_owned();
        let date = Command::new("date").args(["-u", "+%F"]).output();
        Self {
            processor: processor(&read("/proc/cpuinfo")),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: first(read("/proc/sys/kernel/osrelease")),
            date: first(
                date.map(|date| String::from_utf8_lossy(&date.stdout).into_owned()).unwrap_or_default(),
            ),
            load: first(read("/proc/loadavg")),
        }
    }

    /// `Intel(R) Xeon(R) Processor, 2 CPUs, Linux 6.18.44, 2026-11-28`
    pub(super) fn line(&self) -> String {
        // What follows the numbers names a build.
        let kernel = self.kernel.split('-').next().unwrap_or_default();
        format!("{}, {} CPUs, Linux {kernel}, {}", self.processor, self.cpus, self.date)
    }

    /// How busy it was.
    pub(super) fn busy(&self) -> String {
        format!("load average at the start: {}", self.load)
    }
}

fn processor(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_processor_kernel_and_date() {
        let machine = Machine {
            processor: processor("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t: fpu\n"),
            cpus: 2,
            kernel: "6.18.44-fc-v669".to_owned(),
            date: "2026-11-28".to_owned(),
            load: "0.10".to_owned(),
        };
        assert_eq!(machine.line(), "A CPU @ 2 GHz, 2 CPUs, Linux 6.18.44, 2026-11-28");
        assert_eq!(processor("Features\t: fp asimd\n"), std::env::consts::ARCH);
    }
}
