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
use wsl_mirror_packets::{Sample, Spec, Transport};

use crate::{
    program::{Program, wait_for_count},
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

#[test]
fn steered_datagrams_reach_their_listener_unchanged() {
    let lab = Lab::builder().configuration(STEER).build().or_panic();
    load(&lab);
    let windows = RawSocket::open(lab.windows(), "winlo0").or_panic();
    let server = listener(&lab, 8080);
    let program = lab.guest().enter(Program::open).or_panic();
    let expect = |what: &str, frames: &[Sample], reasons: &[Reason], port: u16, content: &[u8]| {
        for (frame, reason) in frames.iter().zip(reasons) {
            let before = program.counted().or_panic();
            windows.send(&frame.bytes()).or_panic();
            assert!(wait_for_count(&program, &before).contains(&(*reason, 1)), "{what}: {reason:?}");
        }
        assert!(hear(&server) == (port, content.to_vec()), "{what}: other content");
    };

    let plain = Spec::udp(50_000, 8080, 700);
    expect("plain", &[plain.build()], &[Reason::New], 50_000, &payload(&plain));
    expect("plain again", &[plain.build()], &[Reason::Established], 50_000, &payload(&plain));

    // No-operations up to the longest header that there is.
    let options = Spec { options: vec![1; 40], ..Spec::udp(50_001, 8080, 700) };
    expect("options", &[options.build()], &[Reason::New], 50_001, &payload(&options));

    let padded = Spec { padding: 25, ..Spec::udp(50_002, 8080, 10) };
    let content = payload(&Spec { padding: 0, ..padded.clone() });
    expect("padding", &[padded.build()], &[Reason::New], 50_002, &content);

    // Two fragments: 8 of UDP's header and 72, then the rest, whose first bytes stand where the ports would.
    let datagram = Spec::udp(50_003, 8080, 200);
    let content = payload(&datagram);
    let first = Spec {
        fragment: 0x2000,
        transport: Transport::Udp { length: Some(208) },
        payload: 72,
        ..datagram.clone()
    };
    let mut later = Spec { fragment: 80 / 8, payload: 120, ..datagram }.build();
    later.tail = 0;
    later.head.truncate(34);
    later.head.extend(&content[72..]);
    fix_ip_header(&mut later.head);
    expect("fragments", &[first.build(), later], &[Reason::New, Reason::LaterFragment], 50_003, &content);
}

/// Length and checksum of a frame's IP header, after the packet behind it was changed.
fn fix_ip_header(frame: &mut [u8]) {
    let total = u16::try_from(frame.len() - 14).unwrap_or(0);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let mut sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or(0);
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
            let spec = Spec { options: options.clone(), ..Spec::udp(port, 8080, 100) };
            let before = program.counted().or_panic();
            ring.send(&spec.build().bytes(), linear).or_panic();
            let counted = wait_for_count(&program, &before);
            assert_eq!(counted, [(Reason::New, 1)], "{linear} bytes linear of {headers} bytes of headers");
            assert_eq!(hear(&server), (port, payload(&spec)), "{linear} bytes linear");
        }
    }
    // What is too short stays so, however much is pulled.
    let cut = Spec::udp(50_000, 8080, 100).build().truncated(60);
    let before = program.counted().or_panic();
    ring.send(&cut.bytes(), 14).or_panic();
    assert_eq!(wait_for_count(&program, &before), [(Reason::Truncated, 1)]);
}
