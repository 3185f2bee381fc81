//! The guest, and the agent in it.

use std::{
    io::Read as _,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use rustix::process::Signal;
use serde_json::Value;
use wsl_mirror_lab::{
    Lab, Sockets, loopback, nat, pace,
    process::{Background, wait_for},
    tcp,
};

/// How long the agent may take for anything: far longer than it does.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Whose ports are steered without a word in the configuration.
pub const PROXY: &str = "docker-proxy";

/// A lab with an engine's trap ([`nat::trap`]), and a docker-proxy of ours on 8080.
pub fn proxied(lab: Lab) -> Result<(Lab, Sockets)> {
    nat::trap(lab.guest())?;
    let mut proxy = process(&lab, PROXY)?;
    proxy.serve("0.0.0.0:8080")?;
    Ok((lab, proxy))
}

/// A process of this name in the guest.
pub fn process(lab: &Lab, name: &str) -> Result<Sockets> {
    Sockets::start(lab, lab.guest(), env!("CARGO_BIN_EXE_lab-sockets"), name)
}

/// Whether Windows gets docker-proxy's answer from this port.
pub fn answers(lab: &Lab, port: u16) -> bool {
    answers_within(lab, port, pace::limit(Duration::from_millis(700)))
}

/// The same with more or less patience.
pub fn answers_within(lab: &Lab, port: u16, limit: Duration) -> bool {
    let client = tcp::Client::new(lab.windows(), loopback(port)).reset_on_close();
    let Ok(mut stream) = client.limit(limit).connect() else { return false };
    let mut name = [0; PROXY.len()];
    stream.read_exact(&mut name).is_ok() && name == *PROXY.as_bytes()
}

/// `wsl-mirror run`; killed when it is dropped.
pub struct Agent(pub Background);

impl Agent {
    /// Starts it in the guest, and waits until it says this of itself.
    pub fn start(lab: &Lab, says: &str) -> Result<Self> {
        Self::started(&mut lab.wsl_mirror_command(&["run"])?, says)
    }

    /// Starts it by this command.
    pub fn started(command: &mut Command, says: &str) -> Result<Self> {
        let agent = Self(Background::spawn(command)?);
        agent.says(says)?;
        Ok(agent)
    }

    /// Waits until it has said this.
    pub fn says(&self, words: &str) -> Result<()> {
        wait_for(words, LIMIT, || Ok(self.0.output().contains(words).then_some(())))
            .with_context(|| format!("the agent has said:\n{}", self.0.output()))
    }

    /// Ends it as systemd does, and wants it to end well.
    pub fn end(self) -> Result<String> {
        self.0.signal(Signal::TERM)?;
        Ok(self.0.finish(LIMIT)?.success()?.stderr)
    }

    /// Ends it without its knowledge.
    pub fn kill(self) -> Result<()> {
        self.0.signal(Signal::KILL)?;
        self.0.finish(LIMIT).map(drop)
    }

    /// A number from its `/proc/PID/status`, in kB.
    pub fn memory(&self, name: &str) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        Ok(line.trim_matches([':', ' ', '\t', 'k', 'B']).parse()?)
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.0.pid()))?.count())
    }

    /// How long it has had a CPU so far, with all threads and programs that it has started and that have ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let pid = self.0.pid();
        let mut clock = 0;
        // SAFETY: it writes to the clock's number, which is ours.
        let found = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
        ensure!(found == 0, "no clock of process {pid}");
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: it writes to the time, which is ours.
        let read = unsafe { libc::clock_gettime(clock, &raw mut time) };
        ensure!(read == 0, "the clock of process {pid} does not go");
        let own = Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec)?);
        // utime and stime of children are the 16th and 17th field; the name, the 2nd, may have blanks.
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = text.rsplit_once(") ").context("no name")?;
        let ticks: u64 =
            fields.split(' ').skip(13).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        Ok(own + Duration::from_millis(ticks * 10))
    }
}

/// Waits until something about the guest is so.
pub fn soon(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, LIMIT, || Ok(is_so()?.then_some(())))
}

/// Runs `wsl-mirror` with these arguments and wants it to succeed.
pub fn ok(lab: &Lab, arguments: &[&str]) -> Result<String> {
    Ok(lab.wsl_mirror(arguments)?.success()?.stdout)
}

/// `status --json`, and its exit code.
pub fn status(lab: &Lab) -> Result<(Value, i32)> {
    lab.status_in(lab.guest())
}

/// Runs a shell command in the guest and wants it to succeed.
pub fn sh(lab: &Lab, script: &str) -> Result<String> {
    Ok(lab.guest().run("sh", ["-ec", script])?.stdout)
}

/// What a load does to the network namespace itself, as a text to be compared.
pub fn delivery(lab: &Lab) -> Result<String> {
    sh(
        lab,
        "ip -4 rule; ip link show dev lo; cd /proc/sys/net/ipv4/conf; \
         grep . lo/route_localnet lo/accept_local lo/rp_filter all/route_localnet all/accept_local",
    )
}

/// Whether the kernel has tcx.
pub fn has_tcx(lab: &Lab) -> Result<bool> {
    lab.is_at_least((6, 6))
}

/// How many programs of ours are on `loopback0`, by whichever hook.
pub fn on_hook(lab: &Lab) -> Result<usize> {
    if has_tcx(lab)? {
        return lab.guest().enter(tcx);
    }
    lab.filters()
}

/// The same by tcx, in the namespace of who calls.
pub fn tcx() -> Result<usize> {
    let (_, programs) = SchedClassifier::query_tcx("loopback0", TcAttachType::Ingress)?;
    Ok(programs.iter().filter(|program| program.name_as_str() == Some("wsl_mirror")).count())
}

/// Times, sorted: the median, and a line about them.
pub fn median(what: &str, mut times: Vec<Duration>) -> Result<Duration> {
    times.sort();
    let (first, last) = times.first().zip(times.last()).context("nothing was measured")?;
    let median = times[times.len() / 2];
    println!("{what}: median {median:?} of {}, from {first:?} to {last:?}", times.len());
    Ok(median)
}

/// Does it until `until`; gives how often.
pub fn until(until: Instant, mut work: impl FnMut() -> Result<()>) -> Result<usize> {
    let mut count = 0;
    while Instant::now() < until {
        work()?;
        count += 1;
    }
    ensure!(count > 0, "not once");
    Ok(count)
}
