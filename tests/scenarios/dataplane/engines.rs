//! Engines that carry Windows' flows themselves, by DNAT and masquerade: what works without us goes on.

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, nft, unload, wait_until, windows, windows_udp},
    loopback, nat, pace,
    raw::{RawSocket, frame_from_windows},
    servers, tcp, udp,
};

use crate::world::{
    assert_answers, assert_answers_udp, counted, publish_by_masquerade, services_without_proxy, syn,
};

const PAUSE: Duration = Duration::from_millis(5);
/// Until delayed acknowledgements are through too. A flush breaks an engine's TCP flow, with us or without,
/// if the next packet is the container's: its entry then has no translation.
const SILENCE: Duration = Duration::from_millis(100);

/// CNI's portmap: no host socket, a DNAT, and a masquerade for what comes from 127.0.0.1. Without a socket WSL's Windows
/// sends such a port only as long as it remembers an earlier bind.
#[test]
fn an_engine_without_a_host_socket_keeps_its_own_path() {
    let lab = Lab::builder().sends_always([8300..=8300]).build().or_panic();
    let docker = Docker::start(&lab, &DockerOptions::default()).or_panic();
    let container = docker
        .run(Container::new("pod").serve(Service::TcpEcho { port: 7 }).serve(Service::UdpEcho { port: 7 }))
        .or_panic();
    let address = container.address;
    publish_by_masquerade(&lab, address);
    let new_flows_work = || {
        assert_answers(&lab, 8300);
        assert_answers_udp(&lab, 8300);
    };
    new_flows_work();
    let busy = windows(&lab, 8300).keep_alive(PAUSE).or_panic();
    let mut calm = windows(&lab, 8300).connect().or_panic();
    let datagrams = windows_udp(&lab, 8300).connect().or_panic();
    let mut go_on = |when: &str| {
        assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()), "UDP {when}");
        assert_eq!(tcp::exchange(&mut calm, HELLO), Ok(HELLO.to_vec()), "TCP {when}");
        thread::sleep(SILENCE);
    };
    go_on("before the load");
    load(&lab);
    new_flows_work();
    go_on("after the load");
    load(&lab);
    go_on("after another load");
    assert_eq!(busy.stop().failure, None);
    nat::conntrack_flush(lab.guest()).or_panic();
    go_on("after a flush");
    new_flows_work();
    assert!(lab.packets("pass_no_listener").or_panic() > 0 && lab.packets("pass_engine_nat").or_panic() > 0);
    unload(&lab);
    new_flows_work();
    go_on("after the unload");
}

/// Datagrams that the container receives and, because of a firewall, cannot answer.
struct OneWay<'a> {
    lab: &'a Lab,
    socket: UdpSocket,
}

impl<'a> OneWay<'a> {
    #[track_caller]
    fn start(lab: &'a Lab, port: u16) -> Self {
        nft(
            lab,
            "add table ip one_way; add counter ip one_way arrived; \
             add chain ip one_way pre { type filter hook prerouting priority raw; }; \
             add chain ip one_way forward { type filter hook forward priority 10; }; \
             add rule ip one_way pre iifname docker0 udp sport 17 drop; \
             add rule ip one_way forward oifname docker0 udp dport 17 counter name arrived",
        );
        Self { lab, socket: windows_udp(lab, port).connect().or_panic() }
    }

    /// That the next datagrams arrive where the flow's first one did.
    #[track_caller]
    fn goes_on(&self, when: &str) {
        let arrived = || counted(&nft(self.lab, "list counter ip one_way arrived"));
        for _ in 0..3 {
            let before = arrived();
            self.socket.send(HELLO).or_panic();
            wait_until(&format!("a datagram to reach the container {when}"), Duration::from_secs(1), || {
                arrived() == before + 1
            });
        }
    }
}

#[test]
fn flows_of_docker_without_its_proxy_survive_loads_and_a_flush() {
    let lab = services_without_proxy();
    let busy = windows(&lab, 8080).keep_alive(PAUSE).or_panic();
    let mut calm = windows(&lab, 8080).from_port(40_000).connect().or_panic();
    let datagrams = windows_udp(&lab, 8081).connect().or_panic();
    udp::exchange(&datagrams, HELLO).or_panic();
    let one_way = OneWay::start(&lab, 8017);
    let windows_nic = RawSocket::sender(lab.windows(), "winlo0").or_panic();
    let mut go_on = |when: &str| {
        assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()), "UDP {when}");
        one_way.goes_on(when);
        assert_eq!(tcp::exchange(&mut calm, HELLO), Ok(HELLO.to_vec()), "TCP {when}");
        windows_nic.send(&frame_from_windows(&syn(40_000, 8080, 0x1234_5678))).or_panic();
        thread::sleep(SILENCE);
        assert_eq!(tcp::exchange(&mut calm, HELLO), Ok(HELLO.to_vec()), "TCP after a stray SYN {when}");
        thread::sleep(SILENCE);
    };
    go_on("before the load");
    load_with(&lab, STEER);
    go_on("after the load");
    load_with(&lab, STEER);
    go_on("after another load");
    assert_eq!(busy.stop().failure, None);
    // A datagram without an entry is a new flow: `dockerd`, which holds the port, is no owner that is steered.
    load(&lab);
    nat::conntrack_flush(lab.guest()).or_panic();
    go_on("after a flush");
    unload(&lab);
    go_on("after the unload");
}

/// The first SYN went the engine's way, the container is slow to answer, and meanwhile we are loaded.
#[test]
fn a_handshake_that_an_engine_completes_is_left_to_it() {
    let lab = services_without_proxy();
    nft(
        &lab,
        "add table ip slow; add chain ip slow pre { type filter hook prerouting priority raw; }; \
         add rule ip slow pre iifname docker0 tcp sport 7 drop",
    );
    let client = windows(&lab, 8080).limit(pace::limit(Duration::from_secs(10)));
    thread::scope(|scope| {
        let connecting = scope.spawn(|| client.echo(HELLO));
        wait_until("the SYN to be translated", Duration::from_secs(1), || {
            !nat::conntrack_with(lab.guest(), &["tcp", "dport=8080"]).or_panic().is_empty()
        });
        load_with(&lab, STEER);
        // The retransmission, a second after the first SYN, meets the program before the answer can come.
        wait_until("the SYN's retransmission", Duration::from_secs(8), || {
            lab.packets("pass_engine_nat").or_panic() > 0
        });
        nft(&lab, "delete table ip slow");
        let answer = connecting.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        assert_eq!(answer, Ok(HELLO.to_vec()));
    });
}

/// A redirection to another local port needs no masquerade to work: an answer tells that it does.
#[test]
fn established_flows_redirected_to_another_port_stay_there() {
    let lab = Lab::builder().build().or_panic();
    nft(
        &lab,
        "add table ip mine; add chain ip mine pre { type nat hook prerouting priority dstnat; }; \
         add rule ip mine pre meta l4proto { tcp, udp } th dport 8100 dnat to 127.0.0.1:8200",
    );
    // Somebody holds the port that was asked for, and never says a word.
    let _tcp_holder = servers::tcp_holder(lab.guest(), loopback(8100)).or_panic();
    let _udp_holder = lab.guest().enter(|| UdpSocket::bind(loopback(8100))).or_panic();
    let _servers = [
        servers::tcp_echo(lab.guest(), (Ipv4Addr::LOCALHOST, 8200)).or_panic(),
        servers::udp_echo(lab.guest(), (Ipv4Addr::LOCALHOST, 8200)).or_panic(),
    ];
    let mut connection = windows(&lab, 8100).from_port(40_000).connect().or_panic();
    let datagrams = windows_udp(&lab, 8100).connect().or_panic();
    let mut go_on = |when: &str| {
        assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()), "UDP {when}");
        assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()), "TCP {when}");
    };
    go_on("before the load");
    load_with(&lab, STEER);
    go_on("after the load");
    RawSocket::sender(lab.windows(), "winlo0")
        .or_panic()
        .send(&frame_from_windows(&syn(40_000, 8100, 0x1234_5678)))
        .or_panic();
    thread::sleep(Duration::from_millis(50));
    go_on("after a stray SYN");
    assert!(lab.packets("pass_engine_nat").or_panic() >= 3);
}

/// Such as a log that is sent and never answered: the missing answer does not mean that the flow cannot work.
#[test]
fn one_way_flows_that_a_rule_redirects_stay_there() {
    let lab = Lab::builder().build().or_panic();
    nft(
        &lab,
        "add table ip mine; add chain ip mine pre { type nat hook prerouting priority dstnat; }; \
         add rule ip mine pre udp dport 8100 dnat to 127.0.0.1:8200",
    );
    let _holder = lab.guest().enter(|| UdpSocket::bind(loopback(8100))).or_panic();
    let sink = lab.guest().enter(|| UdpSocket::bind(loopback(8200))).or_panic();
    sink.set_read_timeout(Some(pace::limit(Duration::from_secs(1)))).or_panic();
    let log = windows_udp(&lab, 8100).connect().or_panic();
    let arrives = |when: &str| {
        log.send(HELLO).or_panic();
        let mut buffer = [0; 64];
        let length = sink.recv(&mut buffer).with_context(|| format!("receiving {when}")).or_panic();
        assert_eq!(&buffer[..length], HELLO, "{when}");
    };
    arrives("before the load");
    load_with(&lab, STEER);
    for _ in 0..3 {
        arrives("after the load");
    }
    assert_eq!(lab.packets("steer_new").or_panic(), 0);
}
