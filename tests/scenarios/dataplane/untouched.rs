//! What must be exactly as without us.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use wsl_mirror_lab::{
    Lab, Namespace,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, nft},
    loopback, nat, servers, tcp,
};

use crate::world::{Probe, accept, caught, engine_rule, talk};

/// A road, by who opens the flow to whom.
#[derive(Clone, Copy, Debug)]
enum Road {
    LinuxToLinux,
    LinuxToWindows,
    WindowsToLinux,
}

impl Road {
    const ALL: [Self; 3] = [Self::LinuxToLinux, Self::LinuxToWindows, Self::WindowsToLinux];

    fn ends(self, lab: &Lab) -> (&Namespace, &Namespace) {
        match self {
            Self::LinuxToLinux => (lab.guest(), lab.guest()),
            Self::LinuxToWindows => (lab.guest(), lab.windows()),
            Self::WindowsToLinux => (lab.windows(), lab.guest()),
        }
    }

    /// The server's port: 8100 is one for which an engine has a rule.
    fn ports(self) -> &'static [u16] {
        match self {
            Self::LinuxToLinux => &[8100, 8101],
            Self::LinuxToWindows => &[9100],
            Self::WindowsToLinux => &[8101],
        }
    }

    fn client_port(self) -> u16 {
        match self {
            Self::LinuxToLinux | Self::LinuxToWindows => 45_000,
            Self::WindowsToLinux => 40_000,
        }
    }
}

/// What the two ends and conntrack see of one flow.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    by_the_server: SocketAddr,
    by_the_client: SocketAddr,
    entries: Vec<String>,
}

#[track_caller]
fn tcp_flow(lab: &Lab, road: Road, port: u16) -> Seen {
    let (from, to) = road.ends(lab);
    let listener = to.enter(|| TcpListener::bind(loopback(port))).or_panic();
    let client = tcp::Client::new(from, loopback(port)).from_port(road.client_port()).reset_on_close();
    let mut client = client.connect().or_panic();
    let (mut server, by_the_server) = accept(&listener).or_panic();
    talk(&mut client, &mut server).or_panic();
    Seen {
        by_the_server,
        by_the_client: client.peer_addr().or_panic(),
        entries: entries(lab, "tcp", road, port),
    }
}

#[track_caller]
fn udp_flow(lab: &Lab, road: Road, port: u16) -> Seen {
    let (from, to) = road.ends(lab);
    let server = to.enter(|| UdpSocket::bind(loopback(port))).or_panic();
    let client = from.enter(|| UdpSocket::bind(loopback(road.client_port()))).or_panic();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(tcp::limit())).or_panic();
    }
    let mut buffer = [0; 16];
    client.send_to(HELLO, loopback(port)).or_panic();
    let (_, by_the_server) = server.recv_from(&mut buffer).or_panic();
    server.send_to(HELLO, by_the_server).or_panic();
    let (_, by_the_client) = client.recv_from(&mut buffer).or_panic();
    Seen { by_the_server, by_the_client, entries: entries(lab, "udp", road, port) }
}

/// The flow's entries without what changes from second to second.
#[track_caller]
fn entries(lab: &Lab, protocol: &str, road: Road, port: u16) -> Vec<String> {
    let fields = [protocol, &format!("sport={}", road.client_port()), &format!("dport={port}")];
    nat::conntrack_without_times(lab.guest(), &fields).or_panic()
}

#[test]
fn addresses_and_entries_of_others_are_those_without_us() {
    let lab = Lab::builder().build().or_panic();
    for protocol in ["tcp", "udp"] {
        nft(
            &lab,
            &format!(
                "add table ip engine_{protocol}; \
                 add chain ip engine_{protocol} pre {{ type nat hook prerouting priority dstnat; }}; \
                 add rule ip engine_{protocol} pre {protocol} dport 8100 dnat to 192.0.2.7:80"
            ),
        );
    }
    let mut seen = Vec::new();
    for loaded in [false, true] {
        if loaded {
            load(&lab);
        }
        for road in Road::ALL {
            for port in road.ports() {
                nat::conntrack_flush(lab.guest()).or_panic();
                let tcp = tcp_flow(&lab, road, *port);
                nat::conntrack_flush(lab.guest()).or_panic();
                let udp = udp_flow(&lab, road, *port);
                assert!(tcp.entries.len() == 1 && udp.entries.len() == 1, "{road:?}: {tcp:?} {udp:?}");
                seen.push((tcp, udp));
            }
        }
    }
    let (without, with) = seen.split_at(seen.len() / 2);
    assert_eq!(with, without);
}

#[test]
fn packets_of_flows_that_linux_opens_have_no_mark() {
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "tcp", 8100);
    load(&lab);
    let probe = Probe::new(&lab);
    for name in ["every", "marked"] {
        let mark = if name == "marked" { "meta mark & 0x80 != 0" } else { "" };
        probe.add(name, &format!("meta l4proto {{ tcp, udp }} th dport != 8102 {mark}"));
    }
    for round in 1..=3 {
        for road in [Road::LinuxToLinux, Road::LinuxToWindows] {
            for port in road.ports() {
                tcp_flow(&lab, road, *port);
                udp_flow(&lab, road, *port);
            }
        }
        assert!(probe.packets("every") > 20 * round, "the probe sees the traffic");
    }
    assert_eq!(probe.packets("marked"), 0);
    assert_eq!(caught(&lab), 0, "the hairpin never meets the engine's rule");
    assert!(lab.packets("pass_reply").or_panic() > 0, "Windows' replies");
    assert!(lab.packets("pass_not_ours").or_panic() > 0, "the hairpin");
    for steered in ["steer_new", "steer_established", "steer_reused", "steer_reply", "pass_picked_up"] {
        assert_eq!(lab.packets(steered).or_panic(), 0, "{steered}");
    }
}

/// A DNAT at OUTPUT, as a user may have who wants a server of Windows under another port: until the first
/// reply its entry looks as if an engine had caught a flow, but for the direction.
#[test]
fn a_windows_reply_to_a_flow_that_linux_translated_arrives() {
    let lab = Lab::builder().build().or_panic();
    nft(
        &lab,
        "add table ip mine; \
         add chain ip mine out { type nat hook output priority -100; }; \
         add rule ip mine out ip daddr 127.0.0.1 udp dport 9999 dnat to 127.0.0.1:9100",
    );
    let _server = servers::udp_echo(lab.windows(), (Ipv4Addr::LOCALHOST, 9100)).or_panic();
    // Not connected, so it would take a reply from anywhere.
    let client = lab.guest().enter(|| UdpSocket::bind(loopback(45_000))).or_panic();
    client.set_read_timeout(Some(tcp::limit())).or_panic();
    let ask = || -> SocketAddr {
        client.send_to(HELLO, loopback(9999)).or_panic();
        client.recv_from(&mut [0; 16]).or_panic().1
    };
    let asked = SocketAddr::V4(loopback(9999));
    assert_eq!(ask(), asked, "without wsl-mirror");
    nat::conntrack_flush(lab.guest()).or_panic();
    load(&lab);
    assert_eq!(ask(), asked);
    assert_eq!(ask(), asked);
}

#[test]
fn a_client_of_a_closed_port_is_refused_as_before() {
    let lab = Lab::builder().sends_always([8199..=8199]).build().or_panic();
    let ask = || tcp::Client::new(lab.windows(), loopback(8199)).echo(HELLO);
    assert_eq!(ask(), Err(tcp::Failure::Refused), "without wsl-mirror");
    load(&lab);
    assert_eq!(ask(), Err(tcp::Failure::Refused));
    assert_eq!(lab.packets("pass_no_listener").or_panic(), 1);
}

/// A packet that is dropped after the program leaves an entry behind, which must not live as long as one of a
/// flow that began.
#[test]
fn a_syn_that_a_firewall_drops_leaves_an_entry_for_seconds() {
    let lab = Lab::builder().build().or_panic();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).or_panic();
    nft(
        &lab,
        "add table ip wall; \
         add chain ip wall pre { type filter hook prerouting priority raw; }; \
         add rule ip wall pre tcp dport 8100 drop",
    );
    load_with(&lab, STEER);
    let client = tcp::Client::new(lab.windows(), loopback(8100)).limit(Duration::from_millis(300));
    assert_eq!(client.echo(HELLO), Err(tcp::Failure::ConnectTimedOut));
    let entries = nat::conntrack_with(lab.guest(), &["tcp", "dport=8100"]).or_panic();
    let seconds: Vec<u64> =
        entries.iter().filter_map(|entry| entry.split_whitespace().nth(4)?.parse().ok()).collect();
    assert_eq!(seconds.len(), 1, "{entries:?}");
    assert!(seconds[0] <= 5, "{entries:?}");
}
