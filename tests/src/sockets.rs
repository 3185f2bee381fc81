//! A process in the lab that does with sockets what a test tells it (`lab-sockets`).

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::Ipv4Addr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    Lab, Namespace,
    checks::{windows, windows_udp},
    pace,
};

/// The owner whose ports the loader steers without a configuration: Docker's proxy.
pub const PROXY: &str = "docker-proxy";
/// A client's limit for an answer; a lost packet costs a second.
const ANSWER_LIMIT: Duration = Duration::from_millis(700);

/// The name of the process that answers Windows on this TCP port; `None` without an answer.
pub fn answers(lab: &Lab, port: u16) -> Option<String> {
    answers_within(lab, port, pace::limit(ANSWER_LIMIT))
}

/// The same with another limit.
pub fn answers_within(lab: &Lab, port: u16, limit: Duration) -> Option<String> {
    let mut stream = windows(lab, port).reset_on_close().limit(limit).connect().ok()?;
    let mut name = String::new();
    stream.read_to_string(&mut name).ok()?;
    Some(name).filter(|name| !name.is_empty())
}

/// The name of the process that answers Windows on this UDP port; `None` without an answer.
pub fn answers_udp(lab: &Lab, port: u16) -> Option<String> {
    let name = windows_udp(lab, port).limit(pace::limit(ANSWER_LIMIT)).ask(b"hello").ok()?;
    Some(String::from_utf8_lossy(&name).into_owned())
}

/// Starts [`Sockets`] of this name in the guest, or in another namespace; panics at the caller's line. A macro, since
/// Cargo tells only the test where `lab-sockets` is.
#[macro_export]
macro_rules! lab_sockets {
    ($lab:expr, command $command:expr, $name:expr, $arguments:expr $(,)?) => {
        $crate::checks::OrPanic::or_panic($crate::Sockets::start_by(
            $lab,
            $command(env!("CARGO_BIN_EXE_lab-sockets")).args($arguments),
            $name,
        ))
    };
    ($lab:expr, $name:expr $(,)?) => {
        $crate::lab_sockets!($lab, $lab.guest(), $name)
    };
    ($lab:expr, $namespace:expr, $name:expr $(,)?) => {
        $crate::checks::OrPanic::or_panic($crate::Sockets::start(
            $lab,
            $namespace,
            env!("CARGO_BIN_EXE_lab-sockets"),
            $name,
        ))
    };
}

/// The arguments of a docker-proxy for this port and container.
pub fn proxy_arguments(protocol: &str, port: u16, container: (Ipv4Addr, u16)) -> Vec<String> {
    let (address, container_port) = (container.0.to_string(), container.1.to_string());
    let port = port.to_string();
    [
        ["-proto", protocol],
        ["-host-ip", "0.0.0.0"],
        ["-host-port", &port],
        ["-container-ip", &address],
        ["-container-port", &container_port],
    ]
    .concat()
    .into_iter()
    .map(str::to_owned)
    .collect()
}

/// The process. It ends with this value, and what it has handed its sockets to ends too.
#[derive(Debug)]
pub struct Sockets {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Sockets {
    /// Starts it in the guest or another namespace, in the lab's cgroup, under this name. `program` is `lab-sockets`
    /// (`env!("CARGO_BIN_EXE_lab-sockets")`, which only tests have).
    pub fn start(lab: &Lab, namespace: &Namespace, program: &str, name: &str) -> Result<Self> {
        Self::start_by(lab, &mut namespace.command(program), name)
    }

    /// Starts it by this command, in the lab's cgroup, under this name.
    pub fn start_by(lab: &Lab, command: &mut Command, name: &str) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting lab-sockets")?;
        let input = child.stdin.take().context("no pipe")?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut process = Self { child, input, output };
        process.tell(&format!("group {}", lab.group("processes")?.display()))?;
        process.tell(&format!("name {name}"))?;
        Ok(process)
    }

    /// Has it do one thing; gives what it says.
    pub fn tell(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}").with_context(|| format!("telling it to {line}"))?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
            ("ok", said) => Ok(said.to_owned()),
            (_, said) => bail!("`{line}`: {said}"),
        }
    }

    /// A TCP listener on this address that answers with the process's name.
    pub fn serve(&mut self, address: &str) -> Result<()> {
        self.tell(&format!("bind {address} tcp {address}"))?;
        self.tell(&format!("serve {address}")).map(drop)
    }

    /// Ends the process itself; those that it has handed sockets to go on.
    pub fn leave(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
