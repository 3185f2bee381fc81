//! Published ports, from Windows.

use std::net::UdpSocket;

use wsl_mirror_lab::{
    DockerOptions, Gateway, Lab,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, unload, windows_udp},
    loopback, nat, udp,
};

use crate::world::{
    HANG, assert_answers, assert_answers_udp, assert_hangs, assert_hangs_udp, engine_rule, ruleset,
    services_in,
};

#[test]
fn published_ports_hang_without_and_answer_with_no_rule_made() {
    for gateway in [Gateway::Wsl28, Gateway::Wsl29] {
        let lab = services_in(Lab::builder().gateway(gateway), &DockerOptions::default());
        let rules = ruleset(&lab);
        for port in [8080, 8081] {
            assert_hangs(&lab, port);
            assert_hangs_udp(&lab, port);
        }
        load(&lab);
        assert_eq!(ruleset(&lab), rules, "after load");
        let before = (
            nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic(),
            nat::dnat_packets(lab.guest(), "udp", 8080).or_panic(),
        );
        for port in [8080, 8081] {
            assert_answers(&lab, port);
            assert_answers_udp(&lab, port);
        }
        let after = (
            nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic(),
            nat::dnat_packets(lab.guest(), "udp", 8080).or_panic(),
        );
        assert_eq!(after, before, "Docker's rule sees none of it");
        assert_eq!(ruleset(&lab), rules, "after traffic");
        unload(&lab);
        assert_eq!(ruleset(&lab), rules, "after unload");
    }
}

/// A UDP server may have connected its socket to one client: then nobody but that client finds it.
#[test]
fn a_udp_socket_connected_to_its_client_is_a_listener() {
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "udp", 8100);
    let server = lab.guest().enter(|| UdpSocket::bind(loopback(8100))).or_panic();
    server.connect(loopback(40_000)).or_panic();
    server.set_read_timeout(Some(HANG)).or_panic();
    let client = windows_udp(&lab, 8100).from_port(40_000).connect().or_panic();
    let mut buffer = [0; 16];
    client.send(HELLO).or_panic();
    assert!(server.recv(&mut buffer).is_err(), "without wsl-mirror");
    nat::conntrack_flush(lab.guest()).or_panic();
    load_with(&lab, STEER);
    server.set_read_timeout(Some(udp::limit())).or_panic();
    client.send(HELLO).or_panic();
    assert_eq!(server.recv(&mut buffer).or_panic(), HELLO.len());
}
