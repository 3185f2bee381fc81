//! Report 3: `localhost` is `::1` first, and each connection from Windows takes 21 seconds (WSL#10803, WSL#11034,
//! WSL#11186).
//!
//! A client on Windows sends three SYNs to `::1` in 21 seconds. The client of this test waits [`patience`] instead.

use std::{
    net::{Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use wsl_mirror_lab::{Lab, loopback, pace, servers};

use crate::before_and_after_load;

/// How long the client waits for each address. A retransmission fits in.
fn patience() -> Duration {
    pace::limit(Duration::from_millis(1500))
}

/// Connects to the name `localhost` as a program on Windows does; says by which address, and how long it took.
fn connect_to_localhost(lab: &Lab, port: u16) -> (Option<SocketAddr>, Duration) {
    let started = Instant::now();
    let addresses = [(Ipv6Addr::LOCALHOST, port).into(), SocketAddr::V4(loopback(port))];
    let answers = |address: &SocketAddr| TcpStream::connect_timeout(address, patience()).is_ok();
    let by = lab.windows().enter(|| addresses.into_iter().find(answers));
    (by, started.elapsed())
}

#[test]
fn localhost_answers_windows_after_the_timeout_of_ipv6() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    before_and_after_load(&lab, |when| {
        let (by, took) = connect_to_localhost(&lab, 8100);
        assert_eq!(by, Some(loopback(8100).into()), "{when}");
        assert!(took >= patience(), "{when}: it took {took:?}");
    });
}
