//! `conntrack -F` under direct flows: no local socket belongs to them, so the program remembers how they were translated.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, windows, windows_udp},
    nat, pace, servers,
    services::TcpService,
    tcp, udp,
};

use super::{
    machine::{BRIDGE_ADDRESS, FIRST, IN_CONTAINER, Machine, PORT, UNREPORTED},
    who::who_over,
};
use crate::world::{AT_ONCE, accept, download, talk, upload};

/// Past delayed acknowledgements: nothing is in flight.
const SILENCE: Duration = Duration::from_millis(100);

#[track_caller]
fn flush(machine: &Machine) {
    thread::sleep(SILENCE);
    nat::conntrack_flush(machine.lab.guest()).or_panic();
}

/// The client speaks first, by the port that the container knows: its own, or another one where its own was taken.
#[test]
fn a_silent_flow_goes_on_when_the_client_speaks_first() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    let container = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, FIRST), IN_CONTAINER);
    for (port, is_taken) in [(40_000, false), (UNREPORTED, true)] {
        let mut other = is_taken.then(|| {
            let client = tcp::Client::new(lab.guest(), container).from((BRIDGE_ADDRESS, port));
            let mut other = client.connect().or_panic();
            assert_eq!(who_over(&mut other).or_panic().client, SocketAddrV4::new(BRIDGE_ADDRESS, port));
            other
        });
        let mut flow = windows(lab, PORT).from_port(port).connect().or_panic();
        let before = who_over(&mut flow).or_panic();
        assert!(Machine::is_from(FIRST, &before));
        assert_eq!(before.client.port() != port, is_taken, "{before:?}");
        for round in 1..=3 {
            flush(&machine);
            assert_eq!(who_over(&mut flow), Ok(before), "port {port}, round {round}");
            if let Some(other) = &mut other {
                assert_eq!(tcp::exchange(other, HELLO), Ok(HELLO.to_vec()), "the other flow, round {round}");
            }
        }
        let sport = format!("sport={port}");
        let entries = nat::conntrack_with(lab.guest(), &["tcp", "src=192.0.0.8", &sport]).or_panic();
        let back = format!("dport={}", before.client.port());
        assert!(entries.len() == 1 && entries[0].contains(&back), "{entries:#?}");
    }
    assert_eq!(machine.packets("direct_picked_up"), 6);
    assert_eq!(machine.packets("direct_new"), 2);
}

/// As with any source NAT: the bridge's address knows no such connection, and resets it.
#[test]
fn a_silent_flow_ends_when_the_container_speaks_first() {
    let machine = Machine::direct(Service::Proxy);
    let at = (Ipv4Addr::UNSPECIFIED, 90);
    let listener = machine.container().enter(|| TcpListener::bind(at)).or_panic();
    let _proxy = machine.publish(8090, 90);
    let client = windows(&machine.lab, 8090).from_port(40_000).limit(pace::limit(AT_ONCE));
    let mut flow = client.connect().or_panic();
    let (mut server, _) = accept(&listener).or_panic();
    talk(&mut flow, &mut server).or_panic();
    flush(&machine);
    server.write_all(HELLO).or_panic();
    assert!(server.read(&mut [0]).is_err(), "the container's end");
    assert!(talk(&mut flow, &mut server).is_err());
    drop(flow);
    // The next one from the same port is as good as any.
    let mut flow = client.connect().or_panic();
    let (mut server, _) = accept(&listener).or_panic();
    talk(&mut flow, &mut server).or_panic();
}

#[test]
fn datagrams_begin_anew_after_a_flush() {
    let machine = Machine::direct(Service::Proxy);
    let socket = windows_udp(&machine.lab, PORT).connect().or_panic();
    for round in 1..=5 {
        assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()), "round {round}");
        nat::conntrack_flush(machine.lab.guest()).or_panic();
    }
    assert_eq!(machine.packets("direct_new"), 5);
}

/// A limit, and the documents name it: in a transfer the container's next packet often comes before the client's, and then
/// the flow ends by a reset. What came before is right, and the next transfer is as good as any.
#[test]
fn a_flush_in_a_direct_transfer_corrupts_nothing() {
    const BYTES: u64 = 8 << 20;
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    let all = |port| (Ipv4Addr::UNSPECIFIED, port);
    let _servers = [
        servers::tcp(machine.container(), all(90), TcpService::Source { bytes: BYTES }).or_panic(),
        servers::tcp(machine.container(), all(91), TcpService::Sink).or_panic(),
    ];
    let _listeners = [machine.publish(8090, 90), machine.publish(8091, 91)];
    let client = |port| windows(lab, port).limit(pace::limit(Duration::from_secs(3)));
    let flush = || nat::conntrack_flush(lab.guest()).or_panic();
    for round in 0..pace::rounds(2) {
        let down = download(&client(8090), BYTES, flush);
        let up = upload(&client(8091), BYTES, flush);
        println!("round {round}: down {down:?}, up {up:?}");
        for ended in [down, up] {
            let text = ended.map_or_else(|error| format!("{error:#}"), |()| String::new());
            assert!(!text.contains("wrong content") && !text.contains("BAD"), "round {round}: {text}");
        }
        download(&client(8090), BYTES, || ()).context("the next download").or_panic();
        upload(&client(8091), BYTES, || ()).context("the next upload").or_panic();
    }
}
