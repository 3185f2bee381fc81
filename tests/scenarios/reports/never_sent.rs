//! Report 6: ports that Windows never sends to Linux (WSL#14063, WSL#41135, docker/desktop-feedback#463).

use std::net::Ipv4Addr;

use wsl_mirror_lab::{Lab, checks::HELLO, loopback, servers, udp};

use crate::{HANGS, REFUSED, before_and_after_load, from_linux, from_windows};

/// A fixed port of Windows' own. Bind and listen succeed, and Linux hangs.
#[test]
fn a_server_on_port_5004_is_reached_by_nobody() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 5004)).unwrap();
    before_and_after_load(&lab, |when| {
        assert_eq!(from_windows(&lab, 5004), REFUSED, "{when}: Windows");
        assert_eq!(from_linux(&lab, 5004), HANGS, "{when}: Linux");
    });
}

/// `[experimental] ignoredPorts`: Windows does not hear of the bind, and refuses Linux too.
#[test]
fn a_server_on_an_ignored_port_is_reached_by_nobody() {
    let lab = Lab::builder().ignored_ports([8080]).build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8080)).unwrap();
    before_and_after_load(&lab, |when| {
        assert_eq!(from_windows(&lab, 8080), REFUSED, "{when}: Windows");
        assert_eq!(from_linux(&lab, 8080), REFUSED, "{when}: Linux");
    });
}

/// WSL never reports binds of port 53: a name server in Linux serves no program on the machine.
#[test]
fn a_name_server_on_127_0_0_1_is_reached_by_nobody() {
    let lab = Lab::builder().build().unwrap();
    let _tcp = servers::tcp_echo(lab.guest(), loopback(53)).unwrap();
    let _udp = servers::udp_echo(lab.guest(), loopback(53)).unwrap();
    before_and_after_load(&lab, |when| {
        assert_eq!(from_windows(&lab, 53), REFUSED, "{when}: Windows, TCP");
        assert_eq!(from_linux(&lab, 53), REFUSED, "{when}: Linux, TCP");
        let query = udp::Client::new(lab.guest(), loopback(53)).request(HELLO);
        assert_eq!(query, Err(udp::Failure::TimedOut), "{when}: Linux, UDP");
    });
}
