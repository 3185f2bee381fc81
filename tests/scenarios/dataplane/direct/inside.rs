//! The source alias stays on this machine: what is sent to it goes nowhere but back to Windows' client.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use wsl_mirror_core::abi::{DEFAULT_SOURCE_ALIAS, Service};
use wsl_mirror_lab::{
    BRIDGE, Namespace,
    checks::{HELLO, OrPanic as _, sh, windows, windows_udp},
    pace,
    raw::{Frame, RawSocket},
    tcp, udp,
};

use super::machine::{DIRECT, Machine, PORT};
use crate::world::Watch;

const TO: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Sniffs where the source alias may never be seen.
fn sniffers(machine: &Machine) -> Vec<(&'static str, RawSocket)> {
    let (guest, windows) = (machine.lab.guest(), machine.lab.windows());
    [(guest, "eth0"), (guest, "loopback0"), (windows, "winlo0"), (windows, "winlan0")]
        .map(|(namespace, nic)| (nic, RawSocket::open(namespace, nic).or_panic()))
        .into()
}

/// How many frames with the source alias went over each interface.
#[track_caller]
fn seen(sniffers: &[(&'static str, RawSocket)]) -> Vec<(&'static str, usize)> {
    let has_alias = |frame: &Frame| {
        frame.ipv4().is_some_and(|packet| {
            packet
                .get(12..20)
                .is_some_and(|ends| ends[..4] == DEFAULT_SOURCE_ALIAS || ends[4..] == DEFAULT_SOURCE_ALIAS)
        })
    };
    let count = |(nic, sniffer): &(&'static str, RawSocket)| {
        (*nic, sniffer.collect(Duration::from_millis(20), has_alias).or_panic().len())
    };
    sniffers.iter().map(count).collect()
}

/// Sends to the source alias what anybody can: a SYN and its retransmission, datagrams, echo requests.
#[track_caller]
fn send(from: &Namespace) {
    let limit = Duration::from_millis(20);
    for port in [9, PORT, 40_000] {
        let to = SocketAddrV4::new(TO, port);
        assert!(tcp::Client::new(from, to).limit(limit).connect().is_err());
        assert!(udp::Client::new(from, to).limit(limit).request(HELLO).is_err());
    }
    let _ = from.run("ping", ["-c", "1", "-W", "0.1", "192.0.0.8"]);
}

#[test]
fn nothing_that_is_sent_to_the_source_alias_leaves() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    // With live flows beside it, and without their route.
    let mut flow = windows(lab, PORT).from_port(40_000).connect().or_panic();
    let datagrams = windows_udp(lab, PORT).from_port(40_000).connect().or_panic();
    for when in ["with its route", "without its route"] {
        let sniffers = sniffers(&machine);
        for from in [machine.container(), lab.guest()] {
            send(from);
        }
        let all = seen(&sniffers);
        assert!(all.iter().all(|(_, count)| *count == 0), "{when}: {all:?}");
        if when == "with its route" {
            assert_eq!(tcp::exchange(&mut flow, HELLO), Ok(HELLO.to_vec()));
            assert_eq!(udp::exchange(&datagrams, HELLO), Ok(HELLO.to_vec()));
            sh(lab, "ip route del 192.0.0.8 table 127");
        }
    }
    machine.load(DIRECT);
    assert_eq!(tcp::exchange(&mut flow, HELLO), Ok(HELLO.to_vec()));
}

/// The flows themselves are seen under no alias on any link.
#[test]
fn a_direct_flow_shows_no_alias_on_any_link() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    let (watch, sniffers) = (Watch::start(lab), sniffers(&machine));
    let bridge = RawSocket::open(lab.guest(), BRIDGE).or_panic();
    let client = windows(lab, PORT).limit(pace::limit(Duration::from_secs(2)));
    client.echo_stream(1 << 20).or_panic();
    let long = vec![7; 9000];
    assert_eq!(windows_udp(lab, PORT).request(&long), Ok(long));
    watch.never_saw_the_alias("by direct flows");
    let all = seen(&sniffers);
    assert!(all.iter().all(|(_, count)| *count == 0), "{all:?}");
    assert!(!bridge.collect(Duration::from_millis(20), |_| true).or_panic().is_empty());
}
