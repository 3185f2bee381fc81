//! `localhost` is `::1` first (WSL#10803, WSL#11034, WSL#11186).

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use wsl_mirror_lab::{Dropped, Lab, checks::HELLO, loopback, pace, servers};

use crate::tcp_echo;

/// A connection from Windows to that port of `::1`.
fn connect6(lab: &Lab, port: u16) -> Result<(), io::ErrorKind> {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    // A retransmission fits in.
    let limit = pace::limit(Duration::from_millis(1500));
    let connect = || TcpStream::connect_timeout(&address, limit).map(drop);
    lab.windows().enter(connect).map_err(|error| error.kind())
}

/// The client waits for the end of the retransmissions, then takes 127.0.0.1.
#[test]
fn a_windows_client_of_a_linux_port_hangs_on_ipv6() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let listen6 = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8101));
    let _server6 = lab.guest().enter(listen6).unwrap();
    for port in [8100, 8101] {
        assert_eq!(connect6(&lab, port), Err(io::ErrorKind::TimedOut), "{port}");
    }
    assert!(lab.dropped(Dropped::Ipv6).unwrap() >= 4, "each SYN is sent again");
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()));
}

#[test]
fn ipv6_ports_that_no_linux_program_has_are_windows_own() {
    let lab = Lab::builder().build().unwrap();
    assert_eq!(connect6(&lab, 9100), Err(io::ErrorKind::ConnectionRefused));
    let _server = lab.windows().enter(|| TcpListener::bind((Ipv6Addr::LOCALHOST, 9100))).unwrap();
    assert_eq!(connect6(&lab, 9100), Ok(()));
    assert_eq!(lab.dropped(Dropped::Ipv6).unwrap(), 0);
}

#[test]
fn a_lab_without_silent_ipv6_refuses_at_once() {
    let lab = Lab::builder().silent_ipv6(false).build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    assert_eq!(connect6(&lab, 8100), Err(io::ErrorKind::ConnectionRefused));
}
