//! The end of carried flows: `unload` counts them, ends them at once, and leaves all others alone.

use std::{
    io::{ErrorKind, Read as _},
    net::TcpListener,
    time::{Duration, Instant},
};

use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load_with, ok, windows, windows_udp},
    loopback, nat, pace, servers, tcp,
};

/// Entries that name the default alias.
#[track_caller]
fn on_the_alias(lab: &Lab) -> Vec<String> {
    let mut entries = nat::conntrack(lab.guest()).or_panic();
    entries.retain(|entry| entry.contains("127.119.0.1"));
    entries
}

#[test]
fn unload_ends_carried_flows_within_a_second_and_counts_them() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let _udp = servers::udp_echo(lab.guest(), loopback(8102)).unwrap();
    // docker-proxy's sockets are of IPv6, too.
    let dual = lab.guest().enter(|| TcpListener::bind("[::]:8101")).unwrap();
    load_with(&lab, STEER);
    let mut flows = [8100, 8100, 8101].map(|port| windows(&lab, port).connect().unwrap());
    let (mut end, _) = dual.accept().unwrap();
    assert_eq!(windows_udp(&lab, 8102).request(HELLO).as_deref(), Ok(HELLO));
    // One that is over does not count.
    assert_eq!(windows(&lab, 8100).echo(HELLO).as_deref(), Ok(HELLO));
    assert_eq!(ok(&lab, &["unload"]).stderr, "wsl-mirror: ended 4 carried flows\n");
    let since = Instant::now();
    for flow in &mut flows {
        assert_eq!(tcp::exchange(flow, HELLO), Err(tcp::Failure::Reset));
    }
    assert!(since.elapsed() < pace::limit(Duration::from_secs(1)), "{:?}", since.elapsed());
    assert_eq!(end.read(&mut [0; 8]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionAborted));
    assert_eq!(on_the_alias(&lab), [""; 0]);
    // The listeners live on.
    assert_eq!(windows(&lab, 8100).echo(HELLO).as_deref(), Ok(HELLO));
    assert!(windows(&lab, 8101).connect().is_ok() && dual.accept().is_ok());
}

#[test]
fn flows_that_nobody_carries_live_on_after_unload() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let mut older = windows(&lab, 8100).connect().unwrap();
    assert_eq!(tcp::exchange(&mut older, HELLO).as_deref(), Ok(HELLO));
    let mut linux = tcp::Client::new(lab.guest(), loopback(8100)).connect().unwrap();
    load_with(&lab, STEER);
    ok(&lab, &["exempt", "add", "8100"]);
    let mut exempt = windows(&lab, 8100).connect().unwrap();
    ok(&lab, &["exempt", "del", "8100"]);
    let mut carried = windows(&lab, 8100).connect().unwrap();
    for flow in [&mut older, &mut linux, &mut exempt, &mut carried] {
        assert_eq!(tcp::exchange(flow, HELLO).as_deref(), Ok(HELLO));
    }
    assert_eq!(ok(&lab, &["unload"]).stderr, "wsl-mirror: ended 1 carried flow\n");
    assert_eq!(tcp::exchange(&mut carried, HELLO), Err(tcp::Failure::Reset));
    for flow in [&mut older, &mut linux, &mut exempt] {
        assert_eq!(tcp::exchange(flow, HELLO).as_deref(), Ok(HELLO));
    }
}
