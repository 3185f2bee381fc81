//! Frames that are made by hand: what is in a steered datagram reaches its listener.

use std::{net::UdpSocket, time::Duration};

use anyhow::Context as _;
use wsl_mirror_core::abi::Reason;
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, STEER, load},
    loopback, pace,
    raw::RawSocket,
};
use wsl_mirror_packets::{Spec, checksum::sum};

use crate::{
    program::{Program, wait_for_ipv4_count},
    ring::Ring,
};

/// A server that tells what it hears.
fn listener(lab: &Lab, port: u16) -> UdpSocket {
    let socket = lab.guest().enter(|| UdpSocket::bind(loopback(port))).or_panic();
    socket.set_read_timeout(Some(pace::limit(Duration::from_secs(2)))).or_panic();
    socket
}

/// The next datagram: from which port, and what is in it.
fn hear(socket: &UdpSocket) -> (u16, Vec<u8>) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).context("nothing came").or_panic();
    buffer.truncate(length);
    (from.port(), buffer)
}

fn payload(spec: &Spec) -> Vec<u8> {
    spec.build().bytes().split_off(14 + spec.ip_header() + spec.transport_header())
}

/// A datagram with a right checksum: the stack drops what the program makes of it if that has a wrong one.
fn datagram(port: u16, payload: usize) -> Spec {
    Spec { checksum: true, ..Spec::udp(port, 8080, payload) }
}

#[test]
fn steered_datagrams_reach_their_listener_unchanged() {
    let lab = Lab::builder().configuration(STEER).build().or_panic();
    load(&lab);
    let windows = RawSocket::open(lab.windows(), "winlo0").or_panic();
    let server = listener(&lab, 8080);
    let program = lab.guest().enter(Program::open).or_panic();
    let expect = |what: &str, frame: &[u8], reason: Reason| {
        let before = program.counted().or_panic();
        windows.send(frame).or_panic();
        assert!(wait_for_ipv4_count(&program, &before).contains(&(reason, 1)), "{what}: {reason:?}");
    };
    let heard = |what: &str, port: u16, content: &[u8]| {
        assert!(hear(&server) == (port, content.to_vec()), "{what}: other content");
    };

    let plain = datagram(50_000, 700);
    for reason in [Reason::New, Reason::Established] {
        expect("plain", &plain.build().bytes(), reason);
        heard("plain", 50_000, &payload(&plain));
    }

    let unchecked = Spec { checksum: false, ..plain.clone() };
    expect("no checksum", &unchecked.build().bytes(), Reason::Established);
    heard("no checksum", 50_000, &payload(&unchecked));

    // No-operations up to the longest header that there is.
    let options = Spec { options: vec![1; 40], ..datagram(50_001, 700) };
    expect("options", &options.build().bytes(), Reason::New);
    heard("options", 50_001, &payload(&options));

    let padded = Spec { padding: 25, ..datagram(50_002, 10) };
    expect("padding", &padded.build().bytes(), Reason::New);
    heard("padding", 50_002, &payload(&Spec { padding: 0, ..padded }));

    // UDP's header and 72 bytes, then the rest, whose first bytes stand where the ports would. A second datagram comes
    // in between.
    let [one, two] = [50_003, 50_004].map(|port| datagram(port, 200));
    let [a, b] = [&one, &two].map(|spec| spec.build().bytes());
    let [first_of_a, rest_of_a] = fragments(&a, 7, 80);
    let [first_of_b, rest_of_b] = fragments(&b, 8, 80);
    for (frame, reason) in [
        (&first_of_a, Reason::New),
        (&first_of_b, Reason::New),
        (&rest_of_a, Reason::Fragment),
        (&rest_of_b, Reason::Fragment),
    ] {
        expect("fragments", frame, reason);
    }
    heard("the first datagram", 50_003, &payload(&one));
    heard("the second datagram", 50_004, &payload(&two));

    // One that overtakes its first one passes, and so its datagram is lost.
    let [first, rest] = fragments(&a, 9, 80);
    expect("overtaking", &rest, Reason::LaterFragment);
    expect("overtaken", &first, Reason::Established);
    expect("after it", &plain.build().bytes(), Reason::Established);
    heard("after it", 50_000, &payload(&plain));
}

#[test]
fn a_datagram_with_a_wrong_checksum_reaches_nobody() {
    let lab = Lab::builder().configuration(STEER).build().or_panic();
    load(&lab);
    let windows = RawSocket::open(lab.windows(), "winlo0").or_panic();
    let server = listener(&lab, 8080);
    let mut wrong = datagram(50_000, 700).build().bytes();
    wrong[14 + 20 + 6] ^= 0x40;
    windows.send(&wrong).or_panic();
    windows.send(&datagram(50_000, 10).build().bytes()).or_panic();
    assert_eq!(hear(&server).1.len(), 10, "the good one alone");
}

/// A frame's datagram in two fragments: the first `len` bytes behind the IP header, and the rest.
fn fragments(frame: &[u8], id: u16, len: u16) -> [Vec<u8>; 2] {
    let (header, datagram) = frame.split_at(14 + 20);
    let (first, rest) = datagram.split_at(usize::from(len));
    [(first, 0x2000), (rest, len / 8)].map(|(part, field): (&[u8], u16)| {
        let mut frame = [header, part].concat();
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        fix_ip_header(&mut frame);
        frame
    })
}

/// Length and checksum of a frame's IP header, after the packet behind it was changed.
fn fix_ip_header(frame: &mut [u8]) {
    let total = u16::try_from(frame.len() - 14).unwrap_or(0);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let checksum = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

#[test]
fn headers_beyond_the_linear_part_are_pulled_in() {
    let lab = Lab::builder().configuration(STEER).build().or_panic();
    load(&lab);
    let ring = Ring::open(lab.windows(), "winlo0").or_panic();
    let server = listener(&lab, 8080);
    let program = lab.guest().enter(Program::open).or_panic();
    let mut port = 50_000;
    for options in [Vec::new(), vec![1; 40]] {
        let headers = 14 + 20 + options.len() + 8;
        // From the Ethernet header alone to all of them.
        for linear in 14..=headers {
            port += 1;
            let spec = Spec { options: options.clone(), ..datagram(port, 100) };
            let before = program.counted().or_panic();
            ring.send(&spec.build().bytes(), linear).or_panic();
            let counted = wait_for_ipv4_count(&program, &before);
            assert_eq!(counted, [(Reason::New, 1)], "{linear} bytes linear of {headers} bytes of headers");
            assert_eq!(hear(&server), (port, payload(&spec)), "{linear} bytes linear");
        }
    }
    // What is too short stays so, however much is pulled.
    let cut = Spec::udp(50_000, 8080, 100).build().truncated(60);
    let before = program.counted().or_panic();
    ring.send(&cut.bytes(), 14).or_panic();
    assert_eq!(wait_for_ipv4_count(&program, &before), [(Reason::Truncated, 1)]);
}
