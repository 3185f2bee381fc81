//! For a moment after a port was released, Windows accepts connections to it (the model's).

use std::{
    thread,
    time::{Duration, Instant},
};

use wsl_mirror_lab::{
    Lab, Transport,
    checks::{OrPanic as _, wait_until},
    loopback, pace, servers, tcp,
};

/// Whether a connection to the port is accepted after its server has gone.
#[track_caller]
fn is_accepted_after_the_end(lab: &Lab) -> bool {
    let server = servers::tcp_echo(lab.guest(), loopback(8100)).or_panic();
    // Until the tracker has seen the socket.
    thread::sleep(pace::limit(Duration::from_millis(1100)));
    drop(server);
    let client = tcp::Client::new(lab.windows(), loopback(8100)).limit(Duration::from_millis(200));
    wait_until("the release of 8100", Duration::from_secs(3), || !lab.has_reported(Transport::Tcp, 8100));
    let released = Instant::now();
    while released.elapsed() < pace::limit(Duration::from_millis(300)) {
        if client.clone().reset_on_close().connect().is_ok() {
            return true;
        }
    }
    assert_eq!(client.connect().map(drop), Err(tcp::Failure::Refused));
    false
}

#[test]
fn a_just_released_port_accepts_for_a_moment() {
    let lab = Lab::builder().build().unwrap();
    assert!((0..3).any(|_| is_accepted_after_the_end(&lab)), "no ghost in three tries");
    thread::sleep(pace::limit(Duration::from_millis(300)));
    let client = tcp::Client::new(lab.windows(), loopback(8100));
    assert_eq!(client.connect().map(drop), Err(tcp::Failure::Refused), "the ghost is gone");
}

#[test]
fn a_lab_without_ghosts_refuses_at_once() {
    let lab = Lab::builder().ghosts(false).build().unwrap();
    assert!(!is_accepted_after_the_end(&lab));
}
