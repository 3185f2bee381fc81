//! The address that guest and Windows share on the LAN, with and without hostAddressLoopback (table 128), without
//! wsl-mirror (WSL#41284, WSL#12255, WSL#13367, moby#48136; WSL#12023 of containers and Windows' programs).

use std::{
    net::Ipv4Addr,
    panic::resume_unwind,
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use wsl_mirror_lab::{
    Container, Docker, DockerOptions, LAN_ADDRESS, Lab, Service, Transport,
    checks::{HELLO, OrPanic as _},
    pace, servers, tcp, udp,
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

const PORTS: [u16; 5] = [ANY, LOOPBACK, LAN, LINUX, WINDOWS];

/// The ports that answer at the LAN address, by who asks.
#[derive(Debug, PartialEq, Eq)]
struct Answering {
    windows: Vec<u16>,
    linux: Vec<u16>,
    container: Vec<u16>,
}

/// A lab in which the container `echo` publishes ports, and Linux and Windows serve others.
struct World {
    lab: Lab,
    docker: Docker,
    _servers: [servers::Server; 4],
}

impl World {
    #[track_caller]
    fn new(host_address_loopback: bool, docker: &DockerOptions) -> Self {
        let lab = Lab::builder().host_address_loopback(host_address_loopback).build().or_panic();
        let docker = Docker::start(&lab, docker).or_panic();
        let mut container =
            Container::new("echo").serve(Service::TcpEcho { port: 7 }).serve(Service::UdpEcho { port: 7 });
        for protocol in ["tcp", "udp"] {
            for published in
                [format!("{ANY}"), format!("127.0.0.1:{LOOPBACK}"), format!("{LAN_ADDRESS}:{LAN}")]
            {
                container = container.publish(&format!("{published}:7/{protocol}"));
            }
        }
        docker.run(container).or_panic();
        let any = Ipv4Addr::UNSPECIFIED;
        let servers = [
            servers::tcp_echo(lab.guest(), (any, LINUX)).or_panic(),
            servers::udp_echo(lab.guest(), (any, LINUX)).or_panic(),
            servers::tcp_echo(lab.windows(), (any, WINDOWS)).or_panic(),
            servers::udp_echo(lab.windows(), (any, WINDOWS)).or_panic(),
        ];
        Self { lab, docker, _servers: servers }
    }

    /// All ask at once: half of them wait in vain.
    #[track_caller]
    fn answering(&self, transport: Transport) -> Answering {
        let ask = |namespace, port| match transport {
            Transport::Tcp => tcp::Client::new(namespace, (LAN_ADDRESS, port)).echo(HELLO).is_ok(),
            Transport::Udp => udp::Client::new(namespace, (LAN_ADDRESS, port)).request(HELLO).is_ok(),
        };
        let in_container = |port| is_answered_in_container(&self.docker, transport, port);
        thread::scope(|scope| {
            let windows = scope.spawn(|| answers(|port| ask(self.lab.windows(), port)));
            let linux = scope.spawn(|| answers(|port| ask(self.lab.guest(), port)));
            let container = scope.spawn(|| answers(in_container));
            Answering { windows: join(windows), linux: join(linux), container: join(container) }
        })
    }
}

fn answers(ask: impl Fn(u16) -> bool + Sync) -> Vec<u16> {
    let ask = &ask;
    thread::scope(|scope| {
        let asked = PORTS.map(|port| (port, scope.spawn(move || ask(port))));
        asked.into_iter().filter_map(|(port, answer)| join(answer).then_some(port)).collect()
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn is_answered_in_container(docker: &Docker, transport: Transport, port: u16) -> bool {
    let service = match transport {
        Transport::Tcp => "tcp-echo",
        Transport::Udp => "udp-echo",
    };
    let address = format!("{LAN_ADDRESS}:{port}");
    let limit = pace::limit(Duration::from_millis(1500)).as_millis().to_string();
    docker.cli(&["exec", "echo", "lab-helper", "ask", service, &address, &limit]).is_ok()
}

fn without_proxy() -> DockerOptions {
    DockerOptions { userland_proxy: false, ..DockerOptions::default() }
}

/// What answers without hostAddressLoopback. Linux has the address itself: no road leads to Windows' programs.
#[track_caller]
fn check_without_host_address_loopback(docker: &DockerOptions, container_udp: &[u16]) {
    let world = World::new(false, docker);
    for (transport, container) in [(Transport::Tcp, &[ANY, LAN, LINUX][..]), (Transport::Udp, container_udp)]
    {
        let expected =
            Answering { windows: vec![WINDOWS], linux: vec![ANY, LAN, LINUX], container: container.to_vec() };
        assert_eq!(world.answering(transport), expected, "{transport:?}");
    }
}

/// What answers with hostAddressLoopback. Linux does not reach its own published ports: its packets go to Windows and
/// back.
#[track_caller]
fn check_with_host_address_loopback(docker: &DockerOptions) {
    let world = World::new(true, docker);
    for transport in [Transport::Tcp, Transport::Udp] {
        let expected = Answering {
            windows: vec![ANY, LAN, LINUX, WINDOWS],
            linux: vec![LINUX, WINDOWS],
            container: vec![ANY, LAN, LINUX, WINDOWS],
        };
        assert_eq!(world.answering(transport), expected, "{transport:?}");
    }
}

/// A UDP server on any address answers the container from the bridge's, so the container's client takes no answer.
#[test]
fn the_lan_address_is_linux_own_without_host_address_loopback() {
    check_without_host_address_loopback(&DockerOptions::default(), &[LAN]);
}

/// Docker translates what the container sends to its own published ports.
#[test]
fn without_docker_proxy_the_lan_address_is_linux_own_too() {
    check_without_host_address_loopback(&without_proxy(), &[ANY, LAN]);
}

#[test]
fn the_lan_address_crosses_with_host_address_loopback() {
    check_with_host_address_loopback(&DockerOptions::default());
}

#[test]
fn without_docker_proxy_the_lan_address_crosses_too() {
    check_with_host_address_loopback(&without_proxy());
}
