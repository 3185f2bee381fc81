//! The address that guest and Windows share on the LAN, with and without hostAddressLoopback (table 128), without
//! wsl-mirror (WSL#41284, WSL#12255, WSL#13367, moby#48136; WSL#12023 of containers and Windows' programs).

use std::net::Ipv4Addr;

use wsl_mirror_lab::{
    Container, Docker, DockerOptions, LAN_ADDRESS, Lab, Service,
    checks::{HELLO, OrPanic as _},
    servers, tcp,
};

/// Published on every address.
const ANY: u16 = 8080;
/// Published on 127.0.0.1.
const LOOPBACK: u16 = 8081;
/// Published on the LAN address.
const LAN: u16 = 8082;
/// A Linux program's, on every address.
const LINUX: u16 = 8100;
/// A Windows program's, on every address.
const WINDOWS: u16 = 9100;

/// The ports that answer at the LAN address.
#[derive(Debug, PartialEq, Eq)]
struct Answering {
    windows: Vec<u16>,
    linux: Vec<u16>,
    container: Vec<u16>,
}

/// A lab, with Docker and its proxy, and what answers in it.
#[track_caller]
fn answering(host_address_loopback: bool) -> Answering {
    let lab = Lab::builder().host_address_loopback(host_address_loopback).build().or_panic();
    let docker = Docker::start(&lab, &DockerOptions::default()).or_panic();
    let container = Container::new("echo")
        .serve(Service::TcpEcho { port: 7 })
        .publish(&format!("{ANY}:7"))
        .publish(&format!("127.0.0.1:{LOOPBACK}:7"))
        .publish(&format!("{LAN_ADDRESS}:{LAN}:7"));
    let running = docker.run(container).or_panic();
    let _servers = [
        servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, LINUX)).or_panic(),
        servers::tcp_echo(lab.windows(), (Ipv4Addr::UNSPECIFIED, WINDOWS)).or_panic(),
    ];
    let of = |answers: &dyn Fn(u16) -> bool| {
        [ANY, LOOPBACK, LAN, LINUX, WINDOWS].into_iter().filter(|port| answers(*port)).collect()
    };
    let client = |port| (LAN_ADDRESS, port);
    let in_container = |port| {
        let script = format!("(echo hello; sleep 1) | nc -w 2 {LAN_ADDRESS} {port}");
        let reply = docker.cli(&["exec", running.name(), "sh", "-c", &script]);
        reply.is_ok_and(|reply| reply.stdout.trim() == "hello")
    };
    Answering {
        windows: of(&|port| tcp::Client::new(lab.windows(), client(port)).echo(HELLO).is_ok()),
        linux: of(&|port| tcp::Client::new(lab.guest(), client(port)).echo(HELLO).is_ok()),
        container: of(&in_container),
    }
}

/// Linux has the address itself: no road leads to Windows' programs.
#[test]
fn the_lan_address_is_linux_own_without_host_address_loopback() {
    let expected =
        Answering { windows: vec![WINDOWS], linux: vec![ANY, LAN, LINUX], container: vec![ANY, LAN, LINUX] };
    assert_eq!(answering(false), expected);
}

/// Linux does not reach its own published ports: its packets go to Windows and back. Measured with Docker and its proxy.
#[test]
fn the_lan_address_crosses_with_host_address_loopback() {
    let expected = Answering {
        windows: vec![ANY, LAN, LINUX, WINDOWS],
        linux: vec![LINUX, WINDOWS],
        container: vec![ANY, LAN, LINUX, WINDOWS],
    };
    assert_eq!(answering(true), expected);
}
