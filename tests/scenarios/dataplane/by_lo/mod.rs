//! Docker 28's rule about ports of 127.0.0.1: what comes to one and not on `lo` is dropped. What is steered to such a
//! port is delivered by `lo`, because the rule is known at `load` ([`known`]), or because it was seen to eat SYNs
//! ([`learned`]).

mod fragments;
mod known;
mod learned;
mod stays;

use std::{
    fmt::Write as _,
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use wsl_mirror_lab::{
    Lab, Namespace, Sockets,
    checks::{HELLO, nft},
    loopback, pace, tcp, udp,
};

use crate::world::{AT_ONCE, HANG, counted};

/// Whose ports are steered without a word in the configuration.
const PROXY: &str = "docker-proxy";
/// Two retransmissions and a bit: after one and after three seconds.
const RETRANSMISSIONS: Duration = Duration::from_secs(4);

/// A port under the rule, as Docker 28 and later write it.
#[derive(Clone, Copy)]
struct Rule<'a> {
    lab: &'a Lab,
    protocol: &'static str,
    port: u16,
}

impl<'a> Rule<'a> {
    /// Adds it.
    fn add(lab: &'a Lab, protocol: &'static str, port: u16) -> Result<Self> {
        let rule = Self { lab, protocol, port };
        rule.edit("-A")?;
        Ok(rule)
    }

    /// For both protocols.
    fn add_both(lab: &'a Lab, port: u16) -> Result<[Self; 2]> {
        Ok([Self::add(lab, "tcp", port)?, Self::add(lab, "udp", port)?])
    }

    fn remove(self) -> Result<()> {
        self.edit("-D")
    }

    fn put_back(self) -> Result<()> {
        self.edit("-A")
    }

    fn edit(self, verb: &str) -> Result<()> {
        let port = self.port.to_string();
        let (table, chain) = (["-w", "5", "-t", "raw"], [verb, "PREROUTING", "-p", self.protocol]);
        let rest = ["-d", "127.0.0.1", "--dport", &port, "!", "-i", "lo", "-j", "DROP"];
        self.lab.guest().run("iptables", [&table[..], &chain, &rest].concat()).map(drop)
    }
}

/// Counts, ahead of every such rule, by which interface packets come to ports.
struct Ways<'a>(&'a Lab);

/// How many packets came by `lo`, and how many by `loopback0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Came {
    by_lo: u64,
    plain: u64,
}

impl<'a> Ways<'a> {
    fn new(lab: &'a Lab, ports: &[u16]) -> Result<Self> {
        // Behind reassembly (-400), before Docker's rules (-300).
        let mut script =
            "add table ip ways; add chain ip ways in { type filter hook prerouting priority -310; }; "
                .to_owned();
        for port in ports {
            for (name, nic) in [("by_lo", "lo"), ("plain", "loopback0")] {
                write!(
                    script,
                    "add counter ip ways {name}_{port}; add rule ip ways in iifname {nic} \
                     meta l4proto {{ tcp, udp }} th dport {port} counter name {name}_{port}; "
                )?;
            }
        }
        nft(lab, &script);
        Ok(Self(lab))
    }

    /// What has come to this port so far.
    fn came(&self, port: u16) -> Came {
        let packets = |name| counted(&nft(self.0, &format!("list counter ip ways {name}_{port}")));
        Came { by_lo: packets("by_lo"), plain: packets("plain") }
    }

    /// By which interfaces packets come to this port while that is done.
    fn during<T>(&self, port: u16, work: impl FnOnce() -> Result<T>) -> Result<(T, Came)> {
        let before = self.came(port);
        let result = work()?;
        let after = self.came(port);
        Ok((result, Came { by_lo: after.by_lo - before.by_lo, plain: after.plain - before.plain }))
    }
}

impl Came {
    #[track_caller]
    fn all_by_lo(self, what: &str) {
        assert!(self.by_lo > 0 && self.plain == 0, "{what}: {self:?}");
    }

    #[track_caller]
    fn all_plain(self, what: &str) {
        assert!(self.plain > 0 && self.by_lo == 0, "{what}: {self:?}");
    }
}

/// Both from where one connects to 127.0.0.1.
fn ends(lab: &Lab) -> [&Namespace; 2] {
    [lab.windows(), lab.guest()]
}

fn client(from: &Namespace, port: u16) -> tcp::Client {
    tcp::Client::new(from, loopback(port))
}

/// That this TCP echo service answers before any SYN is sent again.
#[track_caller]
fn answers_at_once(from: &Namespace, port: u16) {
    let started = Instant::now();
    let answer = client(from, port).limit(pace::limit(RETRANSMISSIONS)).echo(HELLO);
    let took = started.elapsed();
    assert_eq!(answer.as_deref(), Ok(HELLO), "{} to TCP port {port}", from.name());
    assert!(took < pace::limit(AT_ONCE), "{} to TCP port {port}: {took:?}", from.name());
}

/// That this UDP echo service answers, which nobody asks twice.
#[track_caller]
fn answers_udp_at_once(from: &Namespace, port: u16) {
    let answer = udp::Client::new(from, loopback(port)).limit(pace::limit(AT_ONCE)).request(HELLO);
    assert_eq!(answer.as_deref(), Ok(HELLO), "{} to UDP port {port}", from.name());
}

/// That this TCP echo service answers when the SYN is sent again, and not before.
#[track_caller]
fn answers_the_second_syn(from: &Namespace, port: u16) {
    let started = Instant::now();
    let answer = client(from, port).limit(pace::limit(RETRANSMISSIONS)).echo(HELLO);
    let took = started.elapsed();
    assert_eq!(answer.as_deref(), Ok(HELLO), "{} to TCP port {port}", from.name());
    let due = Duration::from_millis(900)..pace::limit(RETRANSMISSIONS);
    assert!(due.contains(&took), "{} to TCP port {port}: {took:?}", from.name());
}

#[track_caller]
fn is_eaten(from: &Namespace, port: u16) {
    let answer = client(from, port).limit(HANG).echo(HELLO);
    assert_eq!(answer, Err(tcp::Failure::ConnectTimedOut), "{} to TCP port {port}", from.name());
}

#[track_caller]
fn is_eaten_udp(from: &Namespace, port: u16) {
    let answer = udp::Client::new(from, loopback(port)).limit(HANG).request(HELLO);
    assert_eq!(answer, Err(udp::Failure::TimedOut), "{} to UDP port {port}", from.name());
}

/// A process of this name in the guest, to serve what it is told.
fn process(lab: &Lab, name: &str) -> Result<Sockets> {
    Sockets::start(lab, lab.guest(), env!("CARGO_BIN_EXE_lab-sockets"), name)
}

/// Who serves this TCP port, as its answer says.
fn server(from: &Namespace, port: u16, limit: Duration) -> Result<String> {
    let mut stream = client(from, port).limit(pace::limit(limit)).connect()?;
    let mut name = String::new();
    std::io::Read::read_to_string(&mut stream, &mut name)?;
    Ok(name)
}

/// Who serves this UDP port.
fn server_udp(from: &Namespace, port: u16, limit: Duration) -> Result<String> {
    server_udp_to(&udp::Client::new(from, loopback(port)).limit(pace::limit(limit)))
}

/// The same for this client.
fn server_udp_to(client: &udp::Client) -> Result<String> {
    let socket: UdpSocket = client.connect()?;
    socket.send(HELLO)?;
    let mut name = [0; 64];
    let length = socket.recv(&mut name)?;
    ensure!(length > 0, "an empty answer");
    Ok(String::from_utf8_lossy(&name[..length]).into_owned())
}
