//! Ports that Windows never sends to Linux, and ports that both have (`mirrored-mode.md`; WSL#12891, WSL#41135).

use std::{net::UdpSocket, thread};

use wsl_mirror_lab::{Dropped, Lab, Transport, checks::HELLO, loopback, servers, tcp, udp};

use crate::{tcp_echo, udp_echo};

/// Seen of 5004: Windows does not reach it (WSL#12891), and Linux hangs, although bind and listen succeed (WSL#41135).
/// That the other ports are like it is the model's. All clients try at once: half of them wait in vain.
#[test]
fn linux_servers_on_never_sent_ports_are_reached_by_nobody() {
    let lab = Lab::builder().build().unwrap();
    let ports = [135, 1900, 2869, 3702, 5004, 5357, 5358];
    let _servers = ports.map(|port| servers::tcp_echo(lab.guest(), loopback(port)).unwrap());
    thread::scope(|scope| {
        for port in ports {
            let lab = &lab;
            scope.spawn(move || {
                assert_eq!(tcp_echo(lab, true, port), Err(tcp::Failure::Refused), "Windows, {port}");
                assert_eq!(tcp_echo(lab, false, port), Err(tcp::Failure::ConnectTimedOut), "Linux, {port}");
            });
        }
    });
    assert!(lab.dropped(Dropped::NeverSent).unwrap() > 0);
}

#[test]
fn a_windows_server_on_port_5357_is_reached_by_both() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.windows(), loopback(5357)).unwrap();
    assert_eq!(tcp_echo(&lab, true, 5357), Ok(HELLO.to_vec()), "Windows");
    assert_eq!(tcp_echo(&lab, false, 5357), Ok(HELLO.to_vec()), "Linux");
}

#[test]
fn udp_port_68_is_windows_own() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::udp_echo(lab.guest(), loopback(68)).unwrap();
    assert!(udp_echo(&lab, true, 68).is_err());
    assert_eq!(udp_echo(&lab, false, 68), Err(udp::Failure::TimedOut));
}

/// That Windows gives each datagram to both is the model's.
#[test]
fn a_datagram_to_a_shared_port_reaches_windows_and_linux() {
    let lab = Lab::builder().build().unwrap();
    for port in [5353, 5355] {
        let on_linux = lab.guest().enter(|| UdpSocket::bind(loopback(port))).unwrap();
        let on_windows = lab.windows().enter(|| UdpSocket::bind(loopback(port))).unwrap();
        assert!(lab.has_reported(Transport::Udp, port), "{port}");
        for from in [lab.windows(), lab.guest()] {
            udp::Client::new(from, loopback(port)).connect().unwrap().send(HELLO).unwrap();
            for socket in [&on_linux, &on_windows] {
                socket.set_read_timeout(Some(tcp::limit())).unwrap();
                let mut received = [0; 16];
                let length = socket.recv(&mut received).ok();
                assert_eq!(length, Some(HELLO.len()), "{port}, from the {}", from.name());
                assert_eq!(&received[..HELLO.len()], HELLO, "{port}, from the {}", from.name());
            }
        }
    }
}
