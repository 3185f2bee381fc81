//! Windows garbles destination ports (WSL#41137, WSL#40343, WSL#41102, WSL#10855).

use std::time::Duration;

use wsl_mirror_lab::{
    Dropped, Garbled, Lab,
    checks::{HELLO, OrPanic as _},
    loopback, pace,
    raw::{Frame, RawSocket},
    servers, tcp,
};
use wsl_mirror_windows::checksum;

use crate::tcp_echo;

const HANGS: Result<Vec<u8>, tcp::Failure> = Err(tcp::Failure::ConnectTimedOut);

/// What Windows says to a client whose port no Linux program has.
const REFUSED: Result<Vec<u8>, tcp::Failure> = Err(tcp::Failure::Refused);

/// The roads that each kind breaks: Windows to Linux, Linux to Linux, Linux to Windows, and Linux to a closed port of
/// Windows.
const ROADS: [(&[Garbled], [bool; 4]); 5] = [
    (&[], [false, false, false, false]),
    (&[Garbled::Syn], [true, true, false, false]),
    (&[Garbled::SynAck], [false, true, true, false]),
    (&[Garbled::Rst], [false, false, false, true]),
    (&Garbled::ALL, [true, true, true, true]),
];

#[test]
fn each_kind_of_garbled_packet_breaks_its_roads() {
    for (kinds, breaks) in ROADS {
        let lab = Lab::builder().garbles(kinds, 1000).build().unwrap();
        let _on_linux = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
        let _on_windows = servers::tcp_echo(lab.windows(), loopback(9100)).unwrap();
        let roads = [
            (tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec())),
            (tcp_echo(&lab, false, 8100), Ok(HELLO.to_vec())),
            (tcp_echo(&lab, false, 9100), Ok(HELLO.to_vec())),
            (tcp_echo(&lab, false, 9101), REFUSED),
        ];
        for ((outcome, otherwise), breaks) in roads.into_iter().zip(breaks) {
            assert_eq!(outcome, if breaks { HANGS } else { otherwise }, "{kinds:?}");
        }
        assert_eq!(lab.garbled().unwrap() > 0, !kinds.is_empty(), "{kinds:?}");
    }
}

#[test]
fn garbling_ends_at_run_time_and_spares_established_connections() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let mut stream = tcp::Client::new(lab.windows(), loopback(8100)).connect().unwrap();
    lab.garble(&Garbled::ALL, 1000).unwrap();
    assert_eq!(tcp::exchange(&mut stream, HELLO), Ok(HELLO.to_vec()));
    assert_eq!(tcp_echo(&lab, true, 8100), HANGS);
    lab.garble(&[], 0).unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()));
}

/// Each SYN is sent again after a second, so a client that waits gets through.
#[test]
fn a_share_of_packets_is_garbled() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    lab.garble(&[Garbled::Syn], 100).unwrap();
    let hasty =
        tcp::Client::new(lab.windows(), loopback(8100)).limit(pace::limit(Duration::from_millis(300)));
    let failed = (0..20).filter(|_| hasty.echo(HELLO).is_err()).count();
    assert_eq!((failed, lab.garbled().unwrap()), (2, 2), "of 20");
    lab.garble(&[Garbled::Syn], 500).unwrap();
    let took = tcp::Client::new(lab.windows(), loopback(8100)).connect_time(HELLO).unwrap();
    assert!(took > Duration::from_millis(900), "the first SYN is garbled, the second is not: {took:?}");
}

/// WSL#41137: the wire shows another port, and the rest of the packet says which one it was.
#[test]
fn the_true_port_is_recovered_from_the_frame() {
    let lab = Lab::builder().build().unwrap();
    let _on_linux = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let _on_windows = servers::tcp_echo(lab.windows(), loopback(9100)).unwrap();
    let on_windows = tcp::Client::new(lab.windows(), loopback(8100)).from_port(50_000);
    let on_linux = |from, to| tcp::Client::new(lab.guest(), loopback(to)).from_port(from);
    for (kind, client, from, to) in [
        (Garbled::Syn, on_windows, 50_000, 8100),
        (Garbled::SynAck, on_linux(45_000, 9100), 9100, 45_000),
        (Garbled::Rst, on_linux(45_001, 9101), 9101, 45_001),
    ] {
        let dropped_before = lab.dropped(Dropped::UnknownFlow).unwrap();
        let frames = garbled_frames(&lab, kind, &client, from);
        assert!(frames.len() >= 2, "{kind:?}: the client sends its SYN again: {frames:?}");
        for frame in &frames {
            assert_eq!(recovered_port(frame), to, "{kind:?}: {frame:?}");
        }
        assert!(frames.iter().any(|frame| frame.ports() != Some((6, from, to))), "{kind:?}: {frames:?}");
        // The guest resets what comes to the garbled port, and Windows knows no such flow. A reset has no answer.
        let dropped = lab.dropped(Dropped::UnknownFlow).unwrap();
        assert_eq!(dropped > dropped_before, kind != Garbled::Rst, "{kind:?}");
    }
}

/// The misplaced checksum leaves TCP's own field as the sender left it.
#[test]
fn a_garbled_syn_keeps_the_pseudo_headers_sum() {
    let lab = Lab::builder().build().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let client = tcp::Client::new(lab.windows(), loopback(8100)).from_port(50_000);
    let frames = garbled_frames(&lab, Garbled::Syn, &client, 50_000);
    let syn = frames.iter().find(|frame| frame.ports() != Some((6, 50_000, 8100))).unwrap();
    let (ip, tcp) = syn.ipv4().unwrap().split_at(20);
    let length = u16::try_from(tcp.len()).unwrap().to_be_bytes();
    let pseudo_header = [&ip[12..20], &[0, 6], &length].concat();
    assert_eq!(tcp[16..18], checksum::sum(&pseudo_header).to_be_bytes(), "{syn:?}");
}

/// What comes to the guest from this port, while Windows garbles such packets and the client waits in vain.
#[track_caller]
fn garbled_frames(lab: &Lab, kind: Garbled, client: &tcp::Client, from: u16) -> Vec<Frame> {
    lab.garble(&[kind], 1000).or_panic();
    let sniffer = RawSocket::open(lab.guest(), "loopback0").or_panic();
    assert_eq!(client.echo(HELLO), HANGS, "{kind:?}");
    let comes = |frame: &Frame| !frame.outgoing && frame.ports().is_some_and(|ports| ports.1 == from);
    sniffer.collect(Duration::from_millis(50), comes).or_panic()
}

/// WSL#41137: the sum begins an Ethernet header's length before the TCP header.
const ETHERNET: usize = 14;

/// The port that a frame's destination port was garbled from.
#[track_caller]
fn recovered_port(frame: &Frame) -> u16 {
    let packet = frame.ipv4().ok_or_else(|| anyhow::anyhow!("no IPv4")).or_panic();
    let tcp = usize::from(packet[0] & 0xf) * 4;
    let mut summed = packet[tcp - ETHERNET..].to_vec();
    let port = &mut summed[ETHERNET + 2..ETHERNET + 4];
    let on_wire = u16::from_be_bytes([port[0], port[1]]);
    port.fill(0);
    checksum::recovered_port(on_wire, checksum::sum(&summed))
}
