//! The same addresses and ports again, as soon as TCP allows.

use std::{
    io::{Read as _, Write as _},
    iter,
    net::{Shutdown, TcpListener},
};

use anyhow::{Context as _, Result};
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, windows},
    loopback, nat, pace, tcp,
};

use crate::world::{
    AT_ONCE, PAGE, accept, assert_hangs, caught, engine_rule, read_to_the_end, reset, services, talk,
};

/// None of those from which Windows takes its own, and leaves some in `TIME_WAIT`.
const PORTS: std::ops::Range<u16> = 40_000..40_050;

/// How many connections: enough to come round several times.
fn connections() -> usize {
    pace::rounds(1000).max(4 * PORTS.len())
}

/// A client that does not wait for its SYN to be sent again, a second after the first: the rule may catch the
/// first, and the second gets through. (In emulation it has to wait longer; there, the rule's counter alone tells.)
fn client(lab: &Lab, port: u16, from: u16) -> tcp::Client {
    windows(lab, port).from_port(from).limit(pace::limit(AT_ONCE))
}

/// Every server closes first, so that the old connection lingers in `TIME_WAIT`, in conntrack and as a
/// socket.
#[test]
fn a_client_of_50_ports_never_meets_dnat_after_time_wait() {
    let lab = services();
    assert_hangs(&lab, 8080);
    load(&lab);
    let before = nat::dnat_packets(lab.guest(), "tcp", 8019).or_panic();
    for (count, port) in PORTS.cycle().take(connections()).enumerate() {
        let page = || read_to_the_end(&mut client(&lab, 8019, port).connect()?);
        let bytes = page().with_context(|| format!("connection {count}, from port {port}")).or_panic();
        assert_eq!(bytes, PAGE);
    }
    assert_eq!(
        nat::dnat_packets(lab.guest(), "tcp", 8019).or_panic(),
        before,
        "Docker's rule sees none of it"
    );
    let reused = lab.packets("steer_reused").or_panic();
    let due = u64::try_from(connections() - 2 * PORTS.len()).or_panic();
    assert!(reused >= due, "conntrack had forgotten the old connections: only {reused} were there");
    let timewait = nat::conntrack_with(lab.guest(), &["TIME_WAIT", "dport=8019"]).or_panic();
    assert!(!timewait.is_empty(), "the connections did not end in TIME_WAIT");
}

#[test]
fn a_client_of_50_ports_never_meets_dnat_after_resets() {
    let lab = services();
    load(&lab);
    let before = nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic();
    // The last tenth from one port, each at once after the reset of the one before.
    let ports = PORTS.cycle().take(connections() * 9 / 10).chain(iter::repeat_n(40_099, connections() / 10));
    for (count, port) in ports.enumerate() {
        let echo = || -> Result<()> {
            let mut stream = client(&lab, 8080, port).connect()?;
            tcp::exchange(&mut stream, HELLO)?;
            reset(&stream)
        };
        echo().with_context(|| format!("connection {count}, from port {port}")).or_panic();
    }
    assert_eq!(
        nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic(),
        before,
        "Docker's rule sees none of it"
    );
    let reused = lab.packets("steer_reused").or_panic();
    let due = u64::try_from(connections() - 2 * PORTS.len()).or_panic();
    assert!(reused >= due, "conntrack had forgotten the old connections: only {reused} were there");
}

/// After a flush, the server speaks first: conntrack takes its packet for the first of the flow, and the
/// client's packets for the replies.
#[test]
fn a_port_is_reused_after_a_flush_made_the_server_begin() {
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "tcp", 8100);
    let listener = lab.guest().enter(|| TcpListener::bind(loopback(8100))).or_panic();
    assert_hangs(&lab, 8100);
    load_with(&lab, STEER);
    let before = caught(&lab);
    for by_reset in [false, true] {
        for round in 0..pace::rounds(20) {
            let client = client(&lab, 8100, 40_100 + u16::from(by_reset));
            let mut client = client
                .connect()
                .with_context(|| format!("round {round}, closed by reset: {by_reset}"))
                .or_panic();
            let (mut server, _) = accept(&listener).or_panic();
            talk(&mut client, &mut server).or_panic();
            nat::conntrack_flush(lab.guest()).or_panic();
            server.write_all(HELLO).or_panic();
            client.read_exact(&mut [0; HELLO.len()]).or_panic();
            let entries = nat::conntrack_with(lab.guest(), &["tcp", "sport=8100", "dport=8100"]).or_panic();
            let entry = entries.first().context("the flow has no entry").or_panic();
            let first = entry.split_whitespace().find(|word| word.starts_with("sport="));
            assert_eq!(first, Some("sport=8100"), "the server did not begin: {entry}");
            if by_reset {
                reset(&client).or_panic();
            } else {
                server.shutdown(Shutdown::Write).or_panic();
                read_to_the_end(&mut client).or_panic();
                assert_eq!(server.read(&mut [0]).or_panic(), 0);
            }
        }
    }
    assert_eq!(caught(&lab), before, "the engine's rule sees none of it");
}
