//! Datagrams: short questions, long conversations, and entries that are gone in between.

use std::{net::UdpSocket, thread, time::Duration};

use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load_with, windows_udp},
    loopback, nat, pace, servers, udp,
};

use crate::world::{assert_hangs_udp, caught, engine_rule, on_alias};

/// An echo service behind an engine's rule.
#[track_caller]
fn behind_an_engine() -> (Lab, servers::Server) {
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "udp", 8100);
    let server = servers::udp_echo(lab.guest(), loopback(8100)).or_panic();
    assert_hangs_udp(&lab, 8100);
    nat::conntrack_flush(lab.guest()).or_panic();
    load_with(&lab, STEER);
    (lab, server)
}

#[test]
fn many_clients_ask_one_question_each() {
    let (lab, _server) = behind_an_engine();
    let before = caught(&lab);
    let count = pace::rounds(300);
    for _ in 0..count {
        assert_eq!(windows_udp(&lab, 8100).request(HELLO), Ok(HELLO.to_vec()));
    }
    let begun = lab.packets("steer_new").or_panic() + lab.packets("steer_established").or_panic();
    assert_eq!(begun, count as u64);
    assert_eq!(lab.packets("steer_reply").or_panic(), count as u64);
    assert_eq!(caught(&lab), before);
}

#[test]
fn a_long_conversation_keeps_its_entry() {
    let (lab, _server) = behind_an_engine();
    let socket = windows_udp(&lab, 8100).from_port(40_000).connect().or_panic();
    let entry = || nat::conntrack_identities(lab.guest(), &["udp", "sport=40000", &on_alias()]).or_panic();
    for _ in 0..2 {
        assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    }
    // Past two seconds conntrack takes it for a stream, and gives it more time.
    thread::sleep(Duration::from_millis(2100));
    assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    let first = entry();
    for _ in 0..pace::rounds(300) {
        assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    }
    assert_eq!(entry(), first);
    assert!(first[0].contains("ASSURED"), "{first:?}");
    assert_eq!(lab.packets("steer_new").or_panic(), 1);
}

#[test]
fn the_next_datagram_after_a_lost_entry_is_carried_again() {
    let (lab, _server) = behind_an_engine();
    let before = caught(&lab);
    let sockets: Vec<UdpSocket> = (0..5).map(|_| windows_udp(&lab, 8100).connect().or_panic()).collect();
    let rounds = pace::rounds(20);
    for round in 0..rounds {
        for socket in &sockets {
            assert_eq!(udp::exchange(socket, HELLO), Ok(HELLO.to_vec()), "round {round}");
        }
        nat::conntrack_flush(lab.guest()).or_panic();
    }
    assert_eq!(lab.packets("steer_new").or_panic(), (rounds * sockets.len()) as u64);
    assert_eq!(caught(&lab), before);
}

/// The answer finds no entry and makes one of its own; by that one the flow goes on.
#[test]
fn an_answer_after_a_flush_reaches_the_client() {
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "udp", 8100);
    load_with(&lab, STEER);
    let server = lab.guest().enter(|| UdpSocket::bind(loopback(8100))).or_panic();
    server.set_read_timeout(Some(udp::limit())).or_panic();
    let client = windows_udp(&lab, 8100).connect().or_panic();
    let mut buffer = [0; 16];
    for round in 0..5 {
        client.send(HELLO).or_panic();
        let (_, peer) =
            server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("round {round}: {error}"));
        nat::conntrack_flush(lab.guest()).or_panic();
        server.send_to(HELLO, peer).or_panic();
        let length = client.recv(&mut buffer).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(&buffer[..length], HELLO);
    }
    assert_eq!(caught(&lab), 0);
}
