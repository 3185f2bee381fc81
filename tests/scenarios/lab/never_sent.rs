//! Ports that Windows never sends to Linux, and ports that both have (`mirrored-mode.md`; WSL#12891, WSL#41135).

use wsl_mirror_lab::{Dropped, Lab, Transport, checks::HELLO, loopback, servers, tcp, udp};

use crate::{tcp_echo, udp_echo};

/// WSL#12891: Windows does not reach it. WSL#41135: Linux hangs, although bind and listen succeed.
#[test]
fn a_linux_server_on_port_5004_is_reached_by_nobody() {
    for port in [135, 1900, 2869, 3702, 5004, 5357, 5358] {
        let lab = Lab::builder().build().unwrap();
        let _server = servers::tcp_echo(lab.guest(), loopback(port)).unwrap();
        assert_eq!(tcp_echo(&lab, true, port), Err(tcp::Failure::Refused), "Windows, {port}");
        if port == 5004 {
            assert_eq!(tcp_echo(&lab, false, port), Err(tcp::Failure::ConnectTimedOut), "Linux, {port}");
            assert!(lab.dropped(Dropped::NeverSent).unwrap() > 0);
        }
    }
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

#[test]
fn a_datagram_to_port_5353_reaches_windows_and_linux() {
    let lab = Lab::builder().build().unwrap();
    let on_linux = lab.guest().enter(|| std::net::UdpSocket::bind(loopback(5353))).unwrap();
    let on_windows = lab.windows().enter(|| std::net::UdpSocket::bind(loopback(5353))).unwrap();
    assert!(lab.has_reported(Transport::Udp, 5353));
    for from in [lab.windows(), lab.guest()] {
        udp::Client::new(from, loopback(5353)).connect().unwrap().send(HELLO).unwrap();
        for socket in [&on_linux, &on_windows] {
            socket.set_read_timeout(Some(tcp::limit())).unwrap();
            let mut received = [0; 16];
            assert_eq!(socket.recv(&mut received).ok(), Some(HELLO.len()), "from the {}", from.name());
            assert_eq!(&received[..HELLO.len()], HELLO, "from the {}", from.name());
        }
    }
}
