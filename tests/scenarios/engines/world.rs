//! What `orders` and `short_connections` share: the engines, a published container, Windows' view of a port.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Container, DockerOptions, Lab, Service,
    checks::{self, HELLO, OrPanic as _},
    tcp, udp,
};

use super::{configuration::DOCKER_28_5, installed};

/// How long is waited for what shall not come; an answer takes a thousandth of it.
pub const HANG: Duration = Duration::from_millis(500);
/// How long for an answer: a retransmission fits in, on a busy machine too.
pub const LIMIT: Duration = Duration::from_secs(5);
/// Published on all addresses.
pub const ANY: u16 = 8080;
/// Published on 127.0.0.1.
pub const LOOPBACK: u16 = 8081;

/// A Docker for these tests.
pub struct Engine {
    pub name: String,
    pub options: DockerOptions,
    /// Whether it drops what comes in elsewhere than on `lo` for a port published on 127.0.0.1.
    pub raw_drop: bool,
}

/// This machine's own Docker, and 28.5 where it can be had.
#[track_caller]
pub fn dockers() -> Vec<Engine> {
    let own = DockerOptions::default();
    let mut engines = Vec::new();
    if Path::new(&own.dockerd).exists() {
        let version = installed::machines_docker().unwrap_or_else(|| "?".to_owned());
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        let raw_drop = major.is_some_and(|major| major >= 28);
        engines.push(Engine { name: format!("this machine's Docker {version}"), options: own, raw_drop });
    } else {
        println!("skipped: this machine has no {}", own.dockerd.display());
    }
    engines.extend(docker_28_5());
    engines
}

/// Docker 28.5, which does not find out that it is in mirrored mode: in labs without `wslinfo`.
#[track_caller]
pub fn docker_28_5() -> Option<Engine> {
    match installed::find(&DOCKER_28_5) {
        Ok(installed) => Some(Engine {
            name: format!("Docker {}", installed.version),
            options: DockerOptions { root: installed.root, ..DockerOptions::default() },
            raw_drop: true,
        }),
        Err(reason) => {
            println!("skipped: Docker 28.5 cannot be had: {reason}");
            None
        }
    }
}

/// Prints the name of each Docker, and runs the order with it.
#[track_caller]
pub fn with_each(mut order: impl FnMut(&Engine)) {
    for engine in dockers() {
        println!("{}", engine.name);
        order(&engine);
    }
}

/// A lab in which no Docker finds out that it is in mirrored mode.
#[track_caller]
pub fn lab() -> Lab {
    Lab::builder().wslinfo(false).ghosts(false).build().or_panic()
}

/// An echo service, TCP and UDP, on [`ANY`] and [`LOOPBACK`].
pub fn published(name: &str) -> Container {
    Container::new(name)
        .serve(Service::TcpEcho { port: 7 })
        .serve(Service::UdpEcho { port: 7 })
        .publish(&format!("{ANY}:7"))
        .publish(&format!("127.0.0.1:{LOOPBACK}:7"))
        .publish(&format!("{ANY}:7/udp"))
        .publish(&format!("127.0.0.1:{LOOPBACK}:7/udp"))
}

/// A TCP client on Windows.
pub fn windows(lab: &Lab, port: u16) -> tcp::Client {
    checks::windows(lab, port).limit(LIMIT)
}

/// A UDP client on Windows.
pub fn windows_udp(lab: &Lab, port: u16) -> udp::Client {
    checks::windows_udp(lab, port).limit(LIMIT)
}

/// That the page hangs, as Windows sees it.
#[track_caller]
pub fn assert_hangs(lab: &Lab, port: u16, when: &str) {
    let answer = windows(lab, port).limit(HANG).echo(HELLO);
    assert_eq!(answer, Err(tcp::Failure::ConnectTimedOut), "port {port} {when}");
}

/// That nobody is there any more, and Windows is told so.
#[track_caller]
pub fn assert_refused(lab: &Lab, port: u16, when: &str) {
    assert_eq!(windows(lab, port).echo(HELLO), Err(tcp::Failure::Refused), "port {port} {when}");
}

/// That Windows is answered.
#[track_caller]
pub fn assert_answers(lab: &Lab, port: u16, when: &str) {
    assert_eq!(windows(lab, port).echo(HELLO), Ok(HELLO.to_vec()), "port {port} {when}");
}

/// That Windows is answered, by UDP.
#[track_caller]
pub fn assert_answers_udp(lab: &Lab, port: u16, when: &str) {
    assert_eq!(windows_udp(lab, port).request(HELLO), Ok(HELLO.to_vec()), "UDP port {port} {when}");
}

/// How many TCP flows to this port were steered.
#[track_caller]
pub fn steered(lab: &Lab, port: u16) -> u64 {
    let status = lab.status().or_panic();
    let ports = status["ports"].as_array().context("status has no ports").or_panic();
    let line = ports.iter().find(|line| line["port"] == port && line["protocol"] == "tcp");
    line.and_then(|line| line["steered_flows"].as_u64()).unwrap_or(0)
}

/// How many TCP connections to this port the engine has caught: those it translates, and those it drops in table raw.
/// It is 0 after its rules were made anew.
#[track_caller]
pub fn caught(lab: &Lab, port: u16) -> u64 {
    let mut caught = 0;
    for (table, chain, target) in [("nat", "DOCKER", "DNAT"), ("raw", "PREROUTING", "DROP")] {
        let listed =
            lab.guest().run("iptables", ["-w", "5", "-t", table, "-L", chain, "-v", "-n", "-x"]).or_panic();
        let rules = listed.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let port = format!("dpt:{port}");
        for rule in rules.filter(|rule| rule.get(2) == Some(&target) && rule.contains(&port.as_str())) {
            if rule.windows(2).any(|pair| pair[0] == "tcp" && pair[1] == port) {
                caught +=
                    rule[0].parse::<u64>().with_context(|| format!("no counter in {rule:?}")).or_panic();
            }
        }
    }
    caught
}
