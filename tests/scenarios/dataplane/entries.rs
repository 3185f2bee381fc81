//! Entries of others: which of them a SYN or a datagram may replace, and which it never may.

use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Namespace, Service,
    checks::{HELLO, OrPanic as _, STEER, load_with, wait_until, windows, windows_udp},
    loopback, nat,
    raw::{RawSocket, frame_from_windows},
    servers, tcp, udp,
};

use crate::world::{
    accept, caught, engine_rule, ipv4, on_alias, publish_by_masquerade, read_to_the_end, reset, syn, talk,
    udp_datagram,
};

/// A service on the machine, and a container whose port an engine without a host socket publishes: it masquerades what
/// comes from 127.0.0.1, as Podman does. Nobody binds 8300, and Windows sends what is bound.
#[track_caller]
fn podman_like() -> (Lab, Docker, [servers::Server; 2]) {
    let lab = Lab::builder().sends_always([8300..=8300]).build().or_panic();
    let docker = Docker::start(&lab, &DockerOptions::default()).or_panic();
    let pod = Container::new("pod").serve(Service::TcpEcho { port: 7 }).serve(Service::UdpEcho { port: 7 });
    let address = docker.run(pod).or_panic().address;
    publish_by_masquerade(&lab, address);
    let servers = [
        servers::tcp_echo(lab.guest(), loopback(8101)).or_panic(),
        servers::udp_echo(lab.guest(), loopback(8101)).or_panic(),
    ];
    (lab, docker, servers)
}

/// A connection and a socket with one tuple, in use.
struct Flow {
    port: u16,
    to: u16,
    tcp: TcpStream,
    udp: UdpSocket,
}

impl Flow {
    #[track_caller]
    fn begin(from: &Namespace, port: u16, to: u16) -> Self {
        let tcp = tcp::Client::new(from, loopback(to)).from_port(port).connect().or_panic();
        let udp = udp::Client::new(from, loopback(to)).from_port(port).connect().or_panic();
        let mut flow = Self { port, to, tcp, udp };
        flow.goes_on("at its beginning");
        flow
    }

    #[track_caller]
    fn goes_on(&mut self, when: &str) {
        let (port, to) = (self.port, self.to);
        assert_eq!(tcp::exchange(&mut self.tcp, HELLO), Ok(HELLO.to_vec()), "TCP {port} to {to} {when}");
        assert_eq!(udp::exchange(&self.udp, HELLO), Ok(HELLO.to_vec()), "UDP {port} to {to} {when}");
    }
}

/// A Linux client over the hairpin, a flow from Windows that began before the load, and one that an engine masquerades.
#[test]
fn load_upgrade_and_new_syns_leave_the_entries_of_live_flows() {
    let (lab, _docker, _servers) = podman_like();
    let mut flows = [
        Flow::begin(lab.guest(), 45_000, 8101),
        Flow::begin(lab.windows(), 40_000, 8101),
        Flow::begin(lab.windows(), 40_001, 8300),
    ];
    // Past delayed acknowledgements, which change what conntrack says about a flow.
    thread::sleep(Duration::from_millis(100));
    let entries = || -> Vec<String> {
        let of = |port: u16| {
            nat::conntrack_identities(lab.guest(), &["src=127.0.0.1", &format!("sport={port}")]).or_panic()
        };
        // An answered datagram makes an entry assured once 2 s have passed (`nf_conntrack_udp_packet`).
        let timeless = |entry: String| {
            if entry.contains(" udp ") { entry.replace(" [ASSURED]", "") } else { entry }
        };
        [45_000, 40_000, 40_001].into_iter().flat_map(of).map(timeless).collect()
    };
    let before = entries();
    assert_eq!(before.len(), 6, "{before:#?}");
    let nic = RawSocket::sender(lab.windows(), "winlo0").or_panic();
    // From Windows, on the tuple of each.
    let meet = || {
        for flow in &flows {
            nic.send(&frame_from_windows(&syn(flow.port, flow.to, 0x1234_5678))).or_panic();
            let datagram = udp_datagram(flow.port, flow.to, HELLO);
            nic.send(&frame_from_windows(&ipv4(17, 0, 0, [127, 0, 0, 1], &datagram))).or_panic();
        }
        thread::sleep(Duration::from_millis(100));
    };
    load_with(&lab, STEER);
    assert_eq!(entries(), before, "after the load");
    meet();
    assert_eq!(entries(), before, "after SYNs and datagrams on their tuples");
    load_with(&lab, STEER);
    meet();
    assert_eq!(entries(), before, "after an upgrade");
    // The echoes of the datagrams wait in the sockets of Windows and of the Linux client.
    for flow in &mut flows {
        flow.udp.set_nonblocking(true).or_panic();
        while flow.udp.recv(&mut [0; 16]).is_ok() {}
        flow.udp.set_nonblocking(false).or_panic();
        flow.goes_on("at the end");
    }
    assert!(lab.packets("pass_not_ours").or_panic() > 0 && lab.packets("pass_engine_nat").or_panic() > 0);
    // What is compared would show it.
    nat::conntrack_flush(lab.guest()).or_panic();
    for flow in &mut flows {
        flow.goes_on("after a flush");
    }
    assert_ne!(entries(), before);
}

/// Conntrack itself would drop such an entry on the SYN, and start over with one that the engine's rule catches.
#[test]
fn a_syn_replaces_the_finished_entry_of_its_tuple_alone() {
    let lab = Lab::builder().build().or_panic();
    let listener = lab.guest().enter(|| TcpListener::bind(loopback(8100))).or_panic();
    // Flows that live without us, and end: by FIN in TIME_WAIT, by RST in CLOSE.
    for port in [40_000, 40_001, 40_002, 40_003] {
        let mut client = windows(&lab, 8100).from_port(port).connect().or_panic();
        let (mut server, _) = accept(&listener).or_panic();
        talk(&mut client, &mut server).or_panic();
        if port % 2 == 0 {
            drop(server);
            read_to_the_end(&mut client).or_panic();
        } else {
            reset(&client).or_panic();
        }
    }
    let entries = |port: u16| {
        nat::conntrack_identities(lab.guest(), &["tcp", &format!("sport={port}"), "dport=8100"]).or_panic()
    };
    let has = |port: u16, state: &str| entries(port).iter().any(|entry| entry.contains(state));
    wait_until("both states", Duration::from_secs(2), || has(40_000, "TIME_WAIT") && has(40_001, "CLOSE"));
    let before = [40_000, 40_001, 40_002, 40_003].map(entries);
    engine_rule(&lab, "tcp", 8100);
    load_with(&lab, STEER);
    for (port, before) in [40_000, 40_001].into_iter().zip(&before) {
        let mut client = windows(&lab, 8100).from_port(port).reset_on_close().connect().or_panic();
        let (mut server, _) = accept(&listener).or_panic();
        talk(&mut client, &mut server).or_panic();
        let now = entries(port);
        assert!(!now.contains(&before[0]), "{now:#?}");
        assert!(now.iter().any(|entry| entry.contains(&on_alias())), "{now:#?}");
    }
    assert_eq!([40_002, 40_003].map(entries), before[2..], "those of others");
    assert_eq!(lab.packets("steer_reused").or_panic(), 2);
    assert_eq!(caught(&lab), 0);
}

/// A stray packet to the alias makes an entry without a translation; it carries no flow, and is in the way of one.
#[test]
fn a_stray_entry_on_the_alias_is_replaced() {
    let lab = Lab::builder().build().or_panic();
    for protocol in ["tcp", "udp"] {
        engine_rule(&lab, protocol, 8100);
    }
    let _servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).or_panic(),
        servers::udp_echo(lab.guest(), loopback(8100)).or_panic(),
    ];
    load_with(&lab, STEER);
    let alias = on_alias();
    let stray = |protocol: &str, state: &str| {
        let tuple = format!("-p {protocol} -s 127.0.0.1 -d {} --sport 40000 --dport 8100", &alias[4..]);
        nat::conntrack_insert(lab.guest(), &format!("{tuple} -t 100 {state}")).or_panic();
        let entries = nat::conntrack_identities(lab.guest(), &[protocol, "sport=40000", &alias]).or_panic();
        assert_eq!(entries.len(), 1, "{entries:#?}");
        entries
    };
    let now = |protocol: &str| {
        nat::conntrack_identities(lab.guest(), &[protocol, "sport=40000", &alias]).or_panic()
    };
    for state in ["ESTABLISHED", "SYN_SENT", "CLOSE"] {
        let before = stray("tcp", &format!("--state {state}"));
        let mut client = windows(&lab, 8100).from_port(40_000).reset_on_close().connect().or_panic();
        assert_eq!(tcp::exchange(&mut client, HELLO), Ok(HELLO.to_vec()), "{state}");
        assert_ne!(now("tcp"), before, "{state}");
        drop(client);
        nat::conntrack_flush(lab.guest()).or_panic();
    }
    // Nobody looks there before the port's first carried datagram: the first finds it, and the second is carried.
    let socket = windows_udp(&lab, 8100).from_port(40_000).connect().or_panic();
    let before = stray("udp", "");
    socket.send(HELLO).or_panic();
    assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    assert_ne!(now("udp"), before);
    nat::conntrack_flush(lab.guest()).or_panic();
    let before = stray("udp", "");
    assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()), "at once, on a port with carried flows");
    assert_ne!(now("udp"), before);
}
