//! Windows accepts replies only of flows that it knows (the model's). Where their packets go, the ports decide.

use std::time::Duration;

use wsl_mirror_lab::{
    Dropped, Lab,
    checks::{HELLO, sh},
    loopback, pace,
    raw::{Frame, RawSocket},
    servers, tcp, udp,
};

use crate::tcp_echo;

#[test]
fn replies_of_a_forgotten_flow_are_dropped() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    for namespace in [lab.windows(), lab.guest()] {
        let client =
            tcp::Client::new(namespace, loopback(8100)).limit(pace::limit(Duration::from_millis(700)));
        let mut stream = client.connect().unwrap();
        assert_eq!(tcp::exchange(&mut stream, HELLO), Ok(HELLO.to_vec()), "{}", namespace.name());
        let before = lab.dropped(Dropped::UnknownFlow).unwrap();
        lab.forget_flows().unwrap();
        let stalled = tcp::exchange(&mut stream, HELLO);
        assert!(stalled.is_err(), "{}: {stalled:?}", namespace.name());
        assert!(lab.dropped(Dropped::UnknownFlow).unwrap() > before, "{}", namespace.name());
        assert!(tcp_echo(&lab, true, 8100).is_ok(), "new flows are as before");
    }
}

/// Windows' own sockets get what its client sends to a port that is Windows' again.
#[test]
fn a_connection_is_reset_once_windows_has_forgotten_its_port() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let mut stream = tcp::Client::new(lab.windows(), loopback(8100)).connect().unwrap();
    assert_eq!(tcp::exchange(&mut stream, HELLO), Ok(HELLO.to_vec()));
    lab.forget_binds_and_flows().unwrap();
    assert_eq!(tcp::exchange(&mut stream, HELLO), Err(tcp::Failure::Reset));
}

/// Docker without docker-proxy: the SYN reaches the container by the bridge, the answer comes by Windows (moby#53553).
#[test]
fn a_syn_ack_between_linux_ports_is_reflected_without_its_syn() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    sh(&lab, "ip rule add pref 0 ipproto tcp dport 8100 lookup local");
    let sniffer = RawSocket::open(lab.guest(), "loopback0").unwrap();
    assert_eq!(tcp_echo(&lab, false, 8100), Ok(HELLO.to_vec()));
    let limit = pace::limit(Duration::from_millis(300));
    let crossed = sniffer.collect(limit, |frame| frame.outgoing && frame.ports().is_some()).unwrap();
    assert!(!crossed.is_empty());
    assert!(crossed.iter().all(|frame| is_from(frame, 8100)), "replies alone");
    assert_eq!(lab.dropped(Dropped::UnknownFlow).unwrap(), 0);
}

/// That Windows watches handshakes is a guess.
#[test]
fn a_watchful_windows_drops_flows_of_which_it_saw_half() {
    let lab = Lab::builder().watches_handshakes(true).build().unwrap();
    let _servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).unwrap(),
        servers::tcp_echo(lab.windows(), loopback(9100)).unwrap(),
    ];
    for (is_windows, port) in [(true, 8100), (false, 8100), (false, 9100), (true, 9100)] {
        for _ in 0..2 {
            assert_eq!(tcp_echo(&lab, is_windows, port), Ok(HELLO.to_vec()), "{is_windows} {port}");
        }
    }
    assert_eq!(lab.dropped(Dropped::UnknownFlow).unwrap(), 0);
    // The SYN stays in Linux, the SYN+ACK goes by Windows.
    sh(&lab, "ip rule add pref 0 ipproto tcp dport 8100 lookup local");
    assert!(tcp_echo(&lab, false, 8100).is_err());
    assert!(lab.dropped(Dropped::UnknownFlow).unwrap() > 0);
}

fn is_from(frame: &Frame, port: u16) -> bool {
    frame.ports().is_some_and(|(_, source, _)| source == port)
}

#[test]
fn no_packet_of_usual_traffic_is_unknown() {
    let lab = Lab::builder().build().unwrap();
    let _servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).unwrap(),
        servers::udp_echo(lab.guest(), loopback(8100)).unwrap(),
        servers::tcp_echo(lab.windows(), loopback(9100)).unwrap(),
        servers::udp_echo(lab.windows(), loopback(9100)).unwrap(),
    ];
    for (namespace, port) in
        [(lab.windows(), 8100), (lab.guest(), 8100), (lab.guest(), 9100), (lab.windows(), 9100)]
    {
        assert_eq!(tcp::Client::new(namespace, loopback(port)).echo(HELLO), Ok(HELLO.to_vec()));
        assert_eq!(udp::Client::new(namespace, loopback(port)).request(HELLO), Ok(HELLO.to_vec()));
    }
    for reason in [Dropped::UnknownFlow, Dropped::Firewall, Dropped::NeverSent, Dropped::Failed] {
        assert_eq!(lab.dropped(reason).unwrap(), 0, "{reason:?}");
    }
}
