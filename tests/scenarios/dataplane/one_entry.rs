//! One conntrack entry of ours, on the alias, takes a flow to its listener; nobody sees anything else of it.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, windows, windows_udp},
    loopback, nat, tcp,
};

use crate::world::{
    accept, assert_answers, assert_answers_udp, caught, engine_rule, on_alias, services, talk,
};

/// The two ends' view of a TCP flow and of a UDP flow from Windows.
#[track_caller]
fn ends(lab: &Lab) -> [SocketAddr; 6] {
    let listener = lab.guest().enter(|| TcpListener::bind(loopback(8100))).or_panic();
    let mut client = windows(lab, 8100).from_port(40_000).reset_on_close().connect().or_panic();
    let (mut server, tcp_client) = accept(&listener).or_panic();
    talk(&mut client, &mut server).or_panic();
    let socket = lab.guest().enter(|| UdpSocket::bind(loopback(8100))).or_panic();
    socket.set_read_timeout(Some(tcp::limit())).or_panic();
    // Not connected: it takes an answer from anywhere.
    let asking = lab.windows().enter(|| UdpSocket::bind(loopback(40_000))).or_panic();
    asking.set_read_timeout(Some(tcp::limit())).or_panic();
    let mut buffer = [0; 16];
    asking.send_to(HELLO, loopback(8100)).or_panic();
    let (_, udp_client) = socket.recv_from(&mut buffer).or_panic();
    socket.send_to(HELLO, udp_client).or_panic();
    let (_, udp_server) = asking.recv_from(&mut buffer).or_panic();
    let local = |stream: &std::net::TcpStream| stream.local_addr().or_panic();
    [tcp_client, local(&server), client.peer_addr().or_panic(), local(&client), udp_client, udp_server]
}

#[test]
fn both_ends_see_the_addresses_that_they_see_without_us() {
    let lab = Lab::builder().build().or_panic();
    let without = ends(&lab);
    nat::conntrack_flush(lab.guest()).or_panic();
    load_with(&lab, STEER);
    let with = ends(&lab);
    assert_eq!(with, without);
    assert_eq!(lab.packets("steer_new").or_panic(), 2);
}

#[test]
fn a_carried_flow_has_one_entry_and_it_is_on_the_alias() {
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "tcp", 8100);
    engine_rule(&lab, "udp", 8100);
    load_with(&lab, STEER);
    ends(&lab);
    for protocol in ["tcp", "udp"] {
        let entries = nat::conntrack_with(lab.guest(), &[protocol, "sport=40000"]).or_panic();
        let on_alias = on_alias();
        // The question on the alias, and the answer from the listener.
        let wanted = ["src=127.0.0.1", &on_alias, "dport=8100", "sport=8100", "dport=40000", "dst=127.0.0.1"];
        assert_eq!(entries.len(), 1, "{entries:#?}");
        for word in wanted {
            assert!(entries[0].split_whitespace().any(|part| part == word), "{word} in {}", entries[0]);
        }
        assert!(!entries[0].contains("UNREPLIED"), "{}", entries[0]);
    }
    assert_eq!(caught(&lab), 0, "the engine's rules see none of it");
}

#[test]
fn dockers_dnat_rules_count_no_carried_flow() {
    let lab = services();
    load(&lab);
    let seen = || ["tcp", "udp"].map(|protocol| nat::dnat_packets(lab.guest(), protocol, 8080).or_panic());
    let before = seen();
    for _ in 0..10 {
        assert_answers(&lab, 8080);
        assert_answers_udp(&lab, 8080);
    }
    assert_eq!(seen(), before);
    let datagrams = nat::conntrack_with(lab.guest(), &["udp", &on_alias(), "dport=8080"]).or_panic();
    assert!(!datagrams.is_empty());
}

/// An answer leaves by the entry of its own flow, whichever of Windows' loopback addresses asked.
#[test]
fn other_loopback_addresses_of_windows_are_carried_too() {
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "udp", 8100);
    load_with(&lab, STEER);
    let server = lab.guest().enter(|| UdpSocket::bind(loopback(8100))).or_panic();
    server.set_read_timeout(Some(tcp::limit())).or_panic();
    let mut buffer = [0; 16];
    for host in [1, 7] {
        let asking = windows_udp(&lab, 8100).from((std::net::Ipv4Addr::new(127, 0, 0, host), 40_000));
        asking.connect().or_panic().send(HELLO).or_panic();
        let (_, from) = server.recv_from(&mut buffer).or_panic();
        assert_eq!(from, SocketAddr::from(([127, 0, 0, host], 40_000)));
    }
    assert_eq!(caught(&lab), 0);
}
