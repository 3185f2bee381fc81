//! Egress is a border: what has the alias as its source and is no reply of a carried flow does not leave.

use std::{
    io::Write as _,
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use wsl_mirror_core::abi::DEFAULT_ALIAS;
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load_with, unload, windows},
    loopback, nat, pace,
    raw::{Frame, RawSocket},
    servers, tcp,
};

use crate::world::{HANG, Watch, accept, talk};

const ALIAS: Ipv4Addr = Ipv4Addr::new(DEFAULT_ALIAS[0], DEFAULT_ALIAS[1], DEFAULT_ALIAS[2], DEFAULT_ALIAS[3]);

/// Whether Windows' own service gets a datagram and a SYN from the alias.
#[track_caller]
fn windows_gets_them(lab: &Lab, from: u16) -> [bool; 2] {
    let server = lab.windows().enter(|| UdpSocket::bind(loopback(9100))).or_panic();
    server.set_read_timeout(Some(HANG)).or_panic();
    let client = lab.guest().enter(|| UdpSocket::bind((ALIAS, from))).or_panic();
    // On a busy machine a new lab's first datagram may come before its links are up.
    for _ in 0..3 {
        client.send_to(HELLO, loopback(9100)).or_panic();
        thread::sleep(Duration::from_millis(50));
    }
    let datagram = server.recv_from(&mut [0; 16]).is_ok();
    let listener = lab.windows().enter(|| TcpListener::bind(loopback(9100))).or_panic();
    // Windows answers to the alias, and its answer goes nowhere: the SYN alone tells.
    let watch = RawSocket::open(lab.windows(), "winlo0").or_panic();
    let connect = tcp::Client::new(lab.guest(), loopback(9100)).from((ALIAS, from)).limit(HANG);
    let _ = connect.connect();
    let is_syn = |frame: &Frame| !frame.outgoing && frame.ports() == Some((6, from, 9100));
    let segment = !watch.collect(Duration::from_millis(20), is_syn).or_panic().is_empty();
    drop(listener);
    [datagram, segment]
}

#[test]
fn a_packet_from_the_alias_that_is_no_reply_is_dropped() {
    let lab = Lab::builder().build().or_panic();
    assert_eq!(windows_gets_them(&lab, 45_000), [true; 2], "without wsl-mirror");
    load_with(&lab, STEER);
    assert_eq!(windows_gets_them(&lab, 45_001), [false; 2]);
    let dropped = lab.packets("drop_no_reply").or_panic();
    assert!(dropped >= 2, "{dropped}");
    // Also with nothing to be carried: the border is not the switch's.
    unload(&lab);
    assert_eq!(windows_gets_them(&lab, 45_002), [true; 2], "after unload");
}

/// A carried connection from Windows' port 40000, in use: its two ends.
#[track_caller]
fn live_flow() -> (Lab, TcpStream, TcpStream) {
    let lab = Lab::builder().build().or_panic();
    load_with(&lab, STEER);
    let listener = lab.guest().enter(|| TcpListener::bind(loopback(8100))).or_panic();
    let mut client = windows(&lab, 8100).from_port(40_000).connect().or_panic();
    let (mut server, _) = accept(&listener).or_panic();
    talk(&mut client, &mut server).or_panic();
    (lab, client, server)
}

/// The addresses of a live flow are no pass: the answer has to be the listener's.
#[test]
fn a_packet_with_a_live_flows_addresses_is_dropped_too() {
    let (lab, mut client, mut server) = live_flow();
    let watch = Watch::start(&lab);
    let forger = lab.guest().enter(|| UdpSocket::bind((ALIAS, 8100))).or_panic();
    forger.send_to(HELLO, loopback(40_000)).or_panic();
    let forger = tcp::Client::new(lab.guest(), loopback(40_000)).from((ALIAS, 8101)).limit(HANG);
    assert!(forger.connect().is_err());
    watch.never_saw_the_alias("while others sent from it");
    assert!(lab.packets("drop_no_reply").or_panic() >= 2);
    talk(&mut client, &mut server).or_panic();
}

/// A reply that conntrack does not know any more: its entry is gone, and the server speaks first.
#[test]
fn a_reply_without_an_entry_leaves_as_itself() {
    let (lab, mut client, mut server) = live_flow();
    let watch = Watch::start(&lab);
    nat::conntrack_flush(lab.guest()).or_panic();
    server.write_all(HELLO).or_panic();
    std::io::Read::read_exact(&mut client, &mut [0; HELLO.len()]).or_panic();
    talk(&mut client, &mut server).or_panic();
    watch.never_saw_the_alias("after the server spoke first");
}

/// A limit: answers of Linux to its own 127.0.0.1 leave by `loopback0`, and this address is not Linux' to use any more.
#[test]
fn a_linux_server_on_the_alias_loses_its_clients() {
    let lab = Lab::builder().build().or_panic();
    let _server = servers::tcp_echo(lab.guest(), (ALIAS, 8100)).or_panic();
    let ask = || tcp::Client::new(lab.guest(), (ALIAS, 8100)).limit(pace::limit(HANG)).echo(HELLO);
    assert_eq!(ask(), Ok(HELLO.to_vec()), "without wsl-mirror");
    load_with(&lab, STEER);
    assert_eq!(ask(), Err(tcp::Failure::ConnectTimedOut));
    assert!(lab.packets("drop_no_reply").or_panic() > 0);
    // By its own address as the source it never leaves.
    let itself = tcp::Client::new(lab.guest(), (ALIAS, 8100)).from((ALIAS, 45_000)).echo(HELLO);
    assert_eq!(itself, Ok(HELLO.to_vec()));
}
