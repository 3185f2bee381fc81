//! The guest, and the agent in it.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use rustix::process::Signal;
use wsl_mirror_lab::{
    Lab, Sockets,
    checks::{OrPanic as _, has_tcx, wait_until},
    lab_sockets, nat,
    process::{Background, wait_for},
    sockets::{self, PROXY},
};

/// How long the agent may take for anything: far longer than it does.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A lab with an engine's trap ([`nat::trap`]), and a docker-proxy of ours on 8080.
#[track_caller]
pub fn proxied(lab: Lab) -> (Lab, Sockets) {
    nat::trap(lab.guest()).or_panic();
    let mut proxy = lab_sockets!(&lab, PROXY);
    proxy.serve("0.0.0.0:8080").or_panic();
    (lab, proxy)
}

/// Whether Windows gets docker-proxy's answer from this port.
pub fn answers(lab: &Lab, port: u16) -> bool {
    sockets::answers(lab, port).as_deref() == Some(PROXY)
}

/// The same with another limit.
pub fn answers_within(lab: &Lab, port: u16, limit: Duration) -> bool {
    sockets::answers_within(lab, port, limit).as_deref() == Some(PROXY)
}

/// `wsl-mirror run`; killed when it is dropped.
pub struct Agent(pub Background);

impl Agent {
    /// Starts it in the guest, and waits until it says this of itself.
    #[track_caller]
    pub fn start(lab: &Lab, says: &str) -> Self {
        Self::started(&mut lab.wsl_mirror_command(&["run"]).or_panic(), says)
    }

    /// Starts it by this command.
    #[track_caller]
    pub fn started(command: &mut Command, says: &str) -> Self {
        let agent = Self(Background::spawn(command).or_panic());
        agent.says(says);
        agent
    }

    /// Waits until it has said this.
    #[track_caller]
    pub fn says(&self, words: &str) {
        wait_for(words, LIMIT, || Ok(self.0.output().contains(words).then_some(())))
            .with_context(|| format!("the agent has said:\n{}", self.0.output()))
            .or_panic();
    }

    /// Ends it as systemd does, and wants it to end well.
    #[track_caller]
    pub fn end(self) -> String {
        self.0.signal(Signal::TERM).or_panic();
        self.0.finish(LIMIT).or_panic().success().or_panic().stderr
    }

    /// Ends it without its knowledge.
    #[track_caller]
    pub fn kill(self) {
        self.0.signal(Signal::KILL).or_panic();
        self.0.finish(LIMIT).or_panic();
    }

    /// A number from its `/proc/PID/status`, in kB.
    #[track_caller]
    pub fn memory(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.pid())).or_panic();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line").or_panic();
        line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().or_panic()
    }

    /// How many descriptors it has open.
    #[track_caller]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.pid())).or_panic().count()
    }

    /// How long it has had a CPU so far, with all threads and programs that it has started and that have ended.
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        let pid = self.0.pid();
        let mut clock = 0;
        // SAFETY: it writes to the clock's number, which is ours.
        let found = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
        assert!(found == 0, "no clock of process {pid}");
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: it writes to the time, which is ours.
        let read = unsafe { libc::clock_gettime(clock, &raw mut time) };
        assert!(read == 0, "the clock of process {pid} does not go");
        let own = Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).or_panic());
        // utime and stime of children are the 16th and 17th field; the name, the 2nd, may have blanks.
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).or_panic();
        let (_, fields) = text.rsplit_once(") ").context("no name").or_panic();
        let ticks: u64 =
            fields.split(' ').skip(13).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        own + Duration::from_millis(ticks * 10)
    }
}

/// Waits for the condition, as long as the agent may take for anything.
#[track_caller]
pub fn soon(what: &str, condition: impl FnMut() -> bool) {
    wait_until(what, LIMIT, condition);
}

/// How many programs of ours are on `loopback0`, by whichever hook.
#[track_caller]
pub fn on_hook(lab: &Lab) -> usize {
    if has_tcx(lab) {
        return lab.guest().enter(tcx).or_panic();
    }
    lab.filters().or_panic()
}

/// The same by tcx, in the namespace of who calls.
pub fn tcx() -> Result<usize> {
    let (_, programs) = SchedClassifier::query_tcx("loopback0", TcAttachType::Ingress)?;
    Ok(programs.iter().filter(|program| program.name_as_str() == Some("wsl_mirror")).count())
}

/// Times, sorted: the median, and a line about them.
#[track_caller]
pub fn median(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let (first, last) = times.first().zip(times.last()).context("nothing was measured").or_panic();
    let median = times[times.len() / 2];
    println!("{what}: median {median:?} of {}, from {first:?} to {last:?}", times.len());
    median
}

/// Does it until `until`; gives how often.
#[track_caller]
pub fn until(until: Instant, mut work: impl FnMut()) -> usize {
    let mut count = 0;
    while Instant::now() < until {
        work();
        count += 1;
    }
    assert!(count > 0, "not once");
    count
}
