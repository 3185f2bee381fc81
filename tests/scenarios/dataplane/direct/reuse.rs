//! The same addresses and ports again, as soon as TCP allows: by direct flows to one container.

use std::{iter, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use wsl_mirror_core::abi::{Protocol, Service};
use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, windows},
    nat, pace, servers,
    services::TcpService,
    tcp,
};

use super::machine::{Machine, PORT};
use crate::world::{AT_ONCE, PAGE, read_to_the_end, reset};

/// None of those from which Windows takes its own, and leaves some in `TIME_WAIT`.
const PORTS: std::ops::Range<u16> = 40_000..40_050;
/// The container's port that sends a page and closes.
const PAGES: u16 = 90;

/// How many connections: enough to come round several times.
fn connections() -> usize {
    pace::rounds(2000).max(4 * PORTS.len())
}

fn client(machine: &Machine, port: u16, from: u16) -> tcp::Client {
    windows(&machine.lab, port).from_port(from).limit(pace::limit(AT_ONCE))
}

/// All flows were direct, and conntrack has an entry for each of the client's ports at most.
#[track_caller]
fn assert_all_direct(machine: &Machine, count: usize, port: u16) {
    assert_eq!(machine.packets("direct_new") + machine.packets("direct_reused"), count as u64);
    assert_eq!(machine.packets("steer_instead"), 0);
    assert_eq!(machine.read(Protocol::Tcp).unanswered_at, 0);
    let port = format!("dport={port}");
    let entries = nat::conntrack_with(machine.lab.guest(), &["tcp", "src=192.0.0.8", &port]).or_panic();
    assert!(entries.len() <= PORTS.len() + 1, "{} entries", entries.len());
}

/// Every server closes first, so that the old connection lingers in `TIME_WAIT`, in conntrack and in the container.
#[test]
fn a_client_of_50_ports_is_direct_after_time_wait() {
    let machine = Machine::direct(Service::Proxy);
    let service = TcpService::Source { bytes: PAGE };
    let _pages = servers::tcp(machine.container(), (Ipv4Addr::UNSPECIFIED, PAGES), service).or_panic();
    let _listener = machine.publish(8090, PAGES);
    for (count, port) in PORTS.cycle().take(connections()).enumerate() {
        let page = || read_to_the_end(&mut client(&machine, 8090, port).connect()?);
        let bytes = page().with_context(|| format!("connection {count}, from port {port}")).or_panic();
        assert_eq!(bytes, PAGE);
    }
    assert_all_direct(&machine, connections(), 8090);
    let due = connections() - 2 * PORTS.len();
    assert!(machine.packets("direct_reused") >= due as u64, "conntrack had forgotten the old connections");
    let timewait = nat::conntrack_with(machine.lab.guest(), &["TIME_WAIT", "src=192.0.0.8"]).or_panic();
    assert!(!timewait.is_empty(), "the connections did not end in TIME_WAIT");
}

#[test]
fn a_client_of_50_ports_is_direct_after_resets() {
    let machine = Machine::direct(Service::Proxy);
    let count = connections() / 4;
    // The last tenth from one port, each at once after the reset of the one before.
    let ports = PORTS.cycle().take(count * 9 / 10).chain(iter::repeat_n(40_099, count - count * 9 / 10));
    for (count, port) in ports.enumerate() {
        let echo = || -> Result<()> {
            let mut stream = client(&machine, PORT, port).connect()?;
            tcp::exchange(&mut stream, HELLO)?;
            reset(&stream)
        };
        echo().with_context(|| format!("connection {count}, from port {port}")).or_panic();
    }
    assert_all_direct(&machine, count, PORT);
}

/// The client closes first: Windows itself waits, and takes the port again after a second.
#[test]
fn a_client_that_closes_first_is_direct_again() {
    const ROUNDS: usize = 2;
    let machine = Machine::direct(Service::Proxy);
    for round in 0..ROUNDS {
        for port in PORTS {
            let echo = || tcp::exchange(&mut client(&machine, PORT, port).connect()?, HELLO);
            assert_eq!(echo(), Ok(HELLO.to_vec()), "round {round}, from port {port}");
        }
    }
    assert_all_direct(&machine, ROUNDS * PORTS.len(), PORT);
    assert_eq!(machine.packets("direct_reused"), ((ROUNDS - 1) * PORTS.len()) as u64);
}
