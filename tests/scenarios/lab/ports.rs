//! Ports follow binds, as WSL's tracker has them (`GnsPortTracker.cpp`, `mirrored-mode.md`).

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use wsl_mirror_lab::{
    Lab, Transport,
    checks::{HELLO, wait_until},
    loopback, pace,
    raw::RawSocket,
    servers, tcp,
};

use crate::{is_tcp_of, tcp_echo, udp_echo};

/// The tracker lists the sockets every 500 ms (`c_sock_diag_refresh_delay`); two rounds fit in.
const RELEASED: Duration = Duration::from_millis(1200);
/// Until the tracker has seen each socket: a port that it has not seen it keeps.
const SEEN: Duration = Duration::from_millis(1100);

#[test]
fn a_bind_opens_the_port_before_it_returns() {
    let lab = Lab::builder().build().unwrap();
    for port in 8300..8300 + u16::try_from(pace::rounds(100)).unwrap() {
        let _server = servers::tcp_echo(lab.guest(), loopback(port)).unwrap();
        assert_eq!(tcp_echo(&lab, true, port), Ok(HELLO.to_vec()), "port {port}");
    }
    let _server = servers::udp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8200)).unwrap();
    assert_eq!(udp_echo(&lab, true, 8200), Ok(HELLO.to_vec()));
    assert!(!lab.has_reported(Transport::Tcp, 8200), "the protocol counts");
}

#[test]
fn a_port_without_a_bind_belongs_to_windows() {
    let lab = Lab::builder().build().unwrap();
    let sniffer = RawSocket::open(lab.guest(), "loopback0").unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Err(tcp::Failure::Refused));
    let seen = sniffer.collect(Duration::from_millis(50), |frame| is_tcp_of(frame, 8100)).unwrap();
    assert!(seen.is_empty(), "Windows has sent {seen:?} to the guest");
}

/// Listening is not needed: engines hold published ports by sockets that only bind. `sock_diag` shows these from Linux
/// 6.8 on. Before that Windows gives the port up, although the socket lives: Podman 6.0's ports lapse on 6.6.
#[test]
fn a_bound_socket_that_does_not_listen_opens_the_port() {
    let give_up = pace::limit(Duration::from_secs(3));
    let lab = Lab::builder().gives_up_after(give_up).build().unwrap();
    let bind = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
        socket.bind(&"[::]:8100".parse::<std::net::SocketAddr>().unwrap().into())?;
        Ok(socket)
    };
    let _socket = lab.guest().enter(bind).map_err(|error: std::io::Error| error).unwrap();
    assert!(lab.has_reported(Transport::Tcp, 8100));
    thread::sleep(give_up + pace::limit(RELEASED));
    assert_eq!(lab.has_reported(Transport::Tcp, 8100), lab.is_at_least((6, 8)).unwrap());
}

#[test]
fn a_released_port_belongs_to_windows_again() {
    let lab = Lab::builder().ghosts(false).build().unwrap();
    let on_linux = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    thread::sleep(pace::limit(SEEN));
    drop(on_linux);
    wait_until("the release of 8100", RELEASED, || !lab.has_reported(Transport::Tcp, 8100));
    let on_windows = servers::tcp_echo(lab.windows(), loopback(8100)).unwrap();
    let on_lo = RawSocket::open(lab.guest(), "loopback0").unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()), "Windows to Windows");
    assert!(on_lo.collect(Duration::ZERO, |frame| is_tcp_of(frame, 8100)).unwrap().is_empty());
    assert_eq!(tcp_echo(&lab, false, 8100), Ok(HELLO.to_vec()), "Linux to Windows");
    drop(on_windows);
    let _on_linux = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()), "Windows to Linux, once more");
}

/// The first release dates a round of the tracker. The second server ends right after that round.
#[test]
fn a_port_is_released_at_the_trackers_next_round() {
    let lab = Lab::builder().ghosts(false).build().unwrap();
    let [first, second] = [8100, 8101].map(|port| servers::tcp_echo(lab.guest(), loopback(port)).unwrap());
    thread::sleep(pace::limit(SEEN));
    drop(first);
    let mut round = Instant::now();
    wait_until("the release of 8100", RELEASED, || {
        let asked = Instant::now();
        let is_released = !lab.has_reported(Transport::Tcp, 8100);
        if !is_released {
            round = asked;
        }
        is_released
    });
    drop(second);
    wait_until("the release of 8101", RELEASED, || !lab.has_reported(Transport::Tcp, 8101));
    let took = round.elapsed();
    assert!(took >= Duration::from_millis(400) && took < pace::limit(RELEASED), "{took:?}");
}

/// The tracker counts sockets by protocol and port, accepted ones too (WSL#40287).
#[test]
fn a_connection_holds_the_port_of_a_closed_listener() {
    let lab = Lab::builder().build().unwrap();
    let listener = servers::tcp_holder(lab.guest(), loopback(8100)).unwrap();
    let mut client = tcp::Client::new(lab.windows(), loopback(8100)).connect().unwrap();
    let (mut server, _) = listener.accept().unwrap();
    drop(listener);
    thread::sleep(pace::limit(Duration::from_millis(1500)));
    assert!(lab.has_reported(Transport::Tcp, 8100));
    crate::talk(&mut client, &mut server).unwrap();
    drop((client, server));
}

#[test]
fn a_port_that_sock_diag_never_showed_is_given_up_late() {
    let give_up = pace::limit(Duration::from_secs(3));
    let lab = Lab::builder().gives_up_after(give_up).build().unwrap();
    // Bound and closed between two looks of the tracker: some of ten are.
    for port in 8100..8110 {
        drop(lab.guest().enter(|| UdpSocket::bind(loopback(port))).unwrap());
    }
    thread::sleep(give_up / 2);
    assert!((8100..8110).any(|port| lab.has_reported(Transport::Udp, port)), "given up too early");
    let gone = || !(8100..8110).any(|port| lab.has_reported(Transport::Udp, port));
    wait_until("the end of 8100 to 8109", give_up + RELEASED, gone);
}

#[test]
fn binds_that_wsl_does_not_report_leave_the_port_with_windows() {
    let lab = Lab::builder().ignored_ports([8101]).build().unwrap();
    let elsewhere = (Ipv4Addr::new(127, 0, 0, 2), 8100);
    let _on_another_address = servers::tcp_echo(lab.guest(), elsewhere).unwrap();
    let _ignored = servers::tcp_echo(lab.guest(), loopback(8101)).unwrap();
    let _dns = servers::udp_echo(lab.guest(), loopback(53)).unwrap();
    for port in [8100, 8101, 53] {
        for protocol in [Transport::Tcp, Transport::Udp] {
            assert!(!lab.has_reported(protocol, port), "{port}");
        }
    }
    assert_eq!(tcp_echo(&lab, true, 8101), Err(tcp::Failure::Refused), "Windows");
    assert_eq!(tcp_echo(&lab, false, 8101), Err(tcp::Failure::Refused), "Linux");
}

#[test]
fn binds_in_other_network_namespaces_are_not_reported() {
    let lab = Lab::builder().build().unwrap();
    let neighbour = Lab::builder().build().unwrap();
    let _elsewhere = neighbour.guest().enter(|| TcpListener::bind(loopback(8100))).unwrap();
    let _on_windows = lab.windows().enter(|| TcpListener::bind(loopback(8101))).unwrap();
    assert!(!lab.has_reported(Transport::Tcp, 8100) && !lab.has_reported(Transport::Tcp, 8101));
    assert!(neighbour.has_reported(Transport::Tcp, 8100));
}

/// The model's: what Windows does with fragments is not known.
#[test]
fn a_large_datagram_goes_where_its_first_fragment_goes() {
    let lab = Lab::builder().build().unwrap();
    let _on_linux = servers::udp_echo(lab.guest(), loopback(8100)).unwrap();
    let _on_windows = servers::udp_echo(lab.windows(), loopback(9100)).unwrap();
    let datagram = vec![7; 8000];
    for (namespace, port) in
        [(lab.windows(), 8100), (lab.guest(), 8100), (lab.guest(), 9100), (lab.windows(), 9100)]
    {
        let client = wsl_mirror_lab::udp::Client::new(namespace, loopback(port));
        assert_eq!(client.request(&datagram).map(|reply| reply.len()), Ok(8000), "{port}");
    }
}
