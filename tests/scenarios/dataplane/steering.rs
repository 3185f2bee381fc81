//! Published ports, from Windows.

use std::{net::UdpSocket, time::Duration};

use anyhow::Result;
use wsl_mirror_lab::{Gateway, Lab, loopback, nat, pace, udp};

use crate::world::{
    HANG, HELLO, assert_answers, assert_answers_udp, assert_hangs, assert_hangs_udp, engine_rule, load,
    load_for_all, ruleset, services, services_in, unload, windows, windows_udp,
};

#[test]
fn published_ports_hang_without_and_answer_with_and_no_rule_is_made() -> Result<()> {
    for gateway in [Gateway::Wsl28, Gateway::Wsl29] {
        let lab = services_in(Lab::builder().gateway(gateway), true)?;
        let rules = ruleset(&lab)?;
        for port in [8080, 8081] {
            assert_hangs(&lab, port);
            assert_hangs_udp(&lab, port);
        }
        load(&lab)?;
        assert_eq!(ruleset(&lab)?, rules, "after load");
        let before =
            (nat::dnat_packets(lab.guest(), "tcp", 8080)?, nat::dnat_packets(lab.guest(), "udp", 8080)?);
        for port in [8080, 8081] {
            assert_answers(&lab, port);
            assert_answers_udp(&lab, port);
        }
        let after =
            (nat::dnat_packets(lab.guest(), "tcp", 8080)?, nat::dnat_packets(lab.guest(), "udp", 8080)?);
        assert_eq!(after, before, "Docker's rule sees none of it");
        assert_eq!(ruleset(&lab)?, rules, "after traffic");
        unload(&lab)?;
        assert_eq!(ruleset(&lab)?, rules, "after unload");
        lab.keep();
    }
    Ok(())
}

#[test]
fn unload_ends_the_steering_of_new_flows_and_leaves_established_ones() -> Result<()> {
    let lab = services()?;
    load(&lab)?;
    let connections = [windows(&lab, 8080).keep_alive(PAUSE)?, windows(&lab, 8081).keep_alive(PAUSE)?];
    let datagrams = [windows_udp(&lab, 8080).connect()?, windows_udp(&lab, 8081).connect()?];
    for socket in &datagrams {
        udp::exchange(socket, HELLO)?;
    }
    unload(&lab)?;
    for port in [8080, 8081] {
        assert_hangs(&lab, port);
        assert_hangs_udp(&lab, port);
    }
    for socket in &datagrams {
        assert_eq!(udp::exchange(socket, HELLO), Ok(HELLO.to_vec()));
    }
    for connection in connections {
        let report = connection.stop();
        assert_eq!(report.failure, None, "{report:?}");
        // Two seconds of hanging have passed.
        assert!(report.exchanges > pace::at_least(100), "{report:?}");
    }
    lab.keep();
    Ok(())
}

/// A UDP server may have connected its socket to one client: then nobody but that client finds it.
#[test]
fn a_udp_socket_that_is_connected_to_its_client_is_a_listener() -> Result<()> {
    let lab = Lab::builder().build()?;
    engine_rule(&lab, "udp", 8100)?;
    let server = lab.guest().enter(|| UdpSocket::bind(loopback(8100)))?;
    server.connect(loopback(40_000))?;
    server.set_read_timeout(Some(HANG))?;
    let client = windows_udp(&lab, 8100).from_port(40_000).connect()?;
    let mut buffer = [0; 16];
    client.send(HELLO)?;
    assert!(server.recv(&mut buffer).is_err(), "without wsl-mirror");
    nat::conntrack_flush(lab.guest())?;
    load_for_all(&lab)?;
    server.set_read_timeout(Some(udp::limit()))?;
    client.send(HELLO)?;
    assert_eq!(server.recv(&mut buffer)?, HELLO.len());
    Ok(())
}

const PAUSE: Duration = Duration::from_millis(5);
