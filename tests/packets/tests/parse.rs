//! The parser over generated frames: the packets that it reads, and its reasons for the rest.
//!
//! Reading bytes that the parser has not checked, or checking more than the program pulls in, is a panic ([`wsl_mirror_packets::HostFrame`]).

#![expect(clippy::expect_used, reason = "a panic is the verdict")]

use std::{collections::HashSet, mem::discriminant, net::Ipv4Addr};

use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
};
use proptest::{prelude::*, test_runner::TestRunner};
use wsl_mirror_core::{
    abi::{DEFAULT_ALIAS, Protocol, Reason},
    packet::{MAX_HEADERS, Packet, Role, parse},
};
use wsl_mirror_packets::{
    BY_FORM, Fault, Sample, Spec, TO_US, Transport, anything,
    checksum::{Address, with_address},
    config, faulty, parse_as_the_program_does, samples, valid,
};

/// A frame as another parser, etherparse, understands it.
#[derive(Debug)]
struct Opinion {
    /// Everything that is wrong with it. A parser that stops early may name any of them.
    faults: Vec<Reason>,
    /// What is in it, if nothing is wrong.
    packet: Option<Packet>,
}

/// Headers of a frame that was cut off, as if zeros had followed: what is there can then be judged field by
/// field.
fn prolonged(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(len), 0);
    bytes
}

fn opinion(sample: &Sample) -> Opinion {
    let mut faults = Vec::new();
    let packet = look_at_frame(sample, &mut faults).filter(|_| faults.is_empty());
    Opinion { faults, packet }
}

/// Gives up, with `None`, where nothing sensible can be said about the rest.
fn look_at_frame(sample: &Sample, faults: &mut Vec<Reason>) -> Option<Packet> {
    if sample.vlan_tag {
        faults.push(Reason::Vlan);
    }
    let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(&sample.head) else {
        faults.push(Reason::Truncated);
        return None;
    };
    if ethernet.destination() != TO_US {
        faults.push(Reason::NotToUs);
    }
    match ethernet.ether_type() {
        EtherType::IPV4 => look_at_ip(&sample.head[14..], sample.len() - 14, faults),
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING => {
            faults.push(Reason::Vlan);
            None
        }
        _ => {
            faults.push(Reason::NotIpv4);
            None
        }
    }
}

fn look_at_ip(bytes: &[u8], there: usize, faults: &mut Vec<Reason>) -> Option<Packet> {
    let mut bytes = prolonged(bytes, 60 + 60);
    let understood = Ipv4HeaderSlice::from_slice(&bytes).is_ok();
    if !understood {
        // It begins with another version or length than an IPv4 header can have. The fields that are always at the
        // same place can be judged even so.
        faults.push(if there < 20 { Reason::Truncated } else { Reason::BadHeader });
        bytes[0] = 0x45;
    }
    let ip = Ipv4HeaderSlice::from_slice(&bytes).expect("60 bytes are any IPv4 header");
    let header = ip.slice().len();
    if there < header {
        faults.push(Reason::Truncated);
        if there < 20 {
            return None;
        }
    }
    if !ip.source_addr().is_loopback() || ip.destination_addr() != Ipv4Addr::LOCALHOST {
        faults.push(Reason::NotLoopback);
    }
    if !understood {
        return None;
    }
    if ip.fragments_offset().value() != 0 {
        faults.push(Reason::LaterFragment);
    }
    let total = match usize::from(ip.total_len()) {
        0 if there > 65_535 => there,
        total => total,
    };
    if there < total {
        faults.push(Reason::Truncated);
    }
    // How much of the packet is left for the transport; nothing if the lengths contradict each other.
    let room = total.saturating_sub(header);
    let transport = prolonged(&bytes[header..], 60);
    // Both begin with the ports.
    let udp = UdpHeaderSlice::from_slice(&transport).expect("eight bytes");
    if udp.source_port() == 0 || udp.destination_port() == 0 {
        faults.push(Reason::PortZero);
    }
    let (protocol, role) = match ip.protocol() {
        IpNumber::TCP => (Protocol::Tcp, look_at_tcp(&transport, room, faults)),
        IpNumber::UDP => {
            let length = usize::from(udp.length());
            if length < 8 || room < 8 || (!ip.more_fragments() && room < length) {
                faults.push(Reason::BadHeader);
            }
            (Protocol::Udp, Role::Datagram)
        }
        _ => {
            faults.push(Reason::NotTcpUdp);
            return None;
        }
    };
    Some(Packet {
        protocol,
        client: ip.source(),
        client_port: udp.source_port(),
        server_port: udp.destination_port(),
        role,
        transport: u16::try_from(14 + header).expect("74 at most"),
        first_fragment: ip.more_fragments().then(|| ip.identification()),
    })
}

fn look_at_tcp(bytes: &[u8], room: usize, faults: &mut Vec<Reason>) -> Role {
    let Ok(tcp) = TcpHeaderSlice::from_slice(bytes) else {
        faults.push(Reason::BadHeader);
        return Role::Other;
    };
    if room < tcp.slice().len() {
        faults.push(Reason::BadHeader);
    }
    match (tcp.syn(), tcp.ack(), tcp.rst(), tcp.fin()) {
        (true, false, false, false) => Role::Syn,
        (false, true, false, false) => Role::Ack,
        _ => Role::Other,
    }
}

fn check(
    cases: u32,
    sample: impl Strategy<Value = Sample>,
    test: impl Fn(Sample) -> Result<(), TestCaseError>,
) {
    TestRunner::new(config(cases)).run(&sample, test).expect("it holds for every frame");
}

#[test]
fn parsed_frames_are_those_that_etherparse_finds_faultless() {
    check(100_000, anything(), |sample| {
        let opinion = opinion(&sample);
        match parse(&sample.frame()) {
            Ok(packet) => prop_assert_eq!(Some(packet), opinion.packet, "{:?}", opinion.faults),
            Err(reason) => {
                prop_assert!(opinion.faults.contains(&reason), "{:?}, but {:?}", reason, opinion);
            }
        }
        Ok(())
    });
}

#[test]
fn a_faultless_frame_parses_field_by_field() {
    TestRunner::new(config(20_000))
        .run(&valid(), |spec| {
            prop_assert_eq!(parse(&spec.build().frame()), Ok(spec.packet()));
            Ok(())
        })
        .expect("it holds for every frame");
}

#[test]
fn a_frame_with_one_fault_passes_for_its_reason() {
    TestRunner::new(config(40_000))
        .run(&faulty(), |(spec, fault, reason)| {
            prop_assert_eq!(parse(&spec.build().frame()), Err(reason), "{:?}", fault);
            Ok(())
        })
        .expect("it holds for every frame");
}

#[test]
fn a_frame_cut_off_anywhere_is_truncated() {
    for spec in samples(valid(), 500) {
        let uncut =
            Sample { tail: 0, ..Spec { payload: spec.payload % 100, padding: 0, ..exact(&spec) }.build() };
        assert_eq!(parse(&uncut.frame()), Ok(spec.packet()), "{uncut:?}");
        for len in 0..uncut.len() {
            let cut = uncut.truncated(len);
            assert_eq!(parse(&cut.frame()), Err(Reason::Truncated), "{len} bytes of {uncut:?}");
        }
    }
}

/// The same headers with lengths that are the truth.
fn exact(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    if let Transport::Udp { length } = &mut spec.transport {
        *length = None;
    }
    spec
}

#[test]
fn headers_beyond_the_linear_part_parse_after_the_pull() {
    for sample in samples(anything(), 3_000) {
        let known = parse(&sample.frame());
        for linear in 0..MAX_HEADERS + 2 {
            assert_eq!(
                parse_as_the_program_does(&sample, linear),
                known,
                "{linear} bytes linear of {sample:?}"
            );
            let at_first = parse(&sample.frame_with_linear(linear));
            assert!(
                at_first == known || at_first == Err(Reason::Truncated),
                "{at_first:?} before the pull, {known:?} after it: {sample:?}"
            );
        }
    }
}

#[test]
fn only_tcp_and_udp_from_loopback_to_localhost_parse() {
    check(100_000, anything(), |sample| {
        let Ok(packet) = parse(&sample.frame()) else { return Ok(()) };
        // By bytes, without any parser.
        let bytes = &sample.head;
        let transport = 14 + usize::from(bytes[14] & 0xf) * 4;
        prop_assert!(!sample.vlan_tag);
        prop_assert_eq!(&bytes[..6], &TO_US);
        prop_assert_eq!(&bytes[12..14], &[0x08, 0x00]);
        prop_assert!((0x45..=0x4f).contains(&bytes[14]));
        prop_assert_eq!(u16::from_be_bytes([bytes[20], bytes[21]]) & 0x1fff, 0);
        prop_assert_eq!(packet.protocol as u8, bytes[23]);
        prop_assert!(matches!(bytes[23], 6 | 17));
        prop_assert_eq!(bytes[26], 127);
        prop_assert_eq!(&bytes[26..30], &packet.client);
        prop_assert_eq!(&bytes[30..34], &[127, 0, 0, 1]);
        prop_assert_eq!(&bytes[transport..transport + 2], &packet.client_port.to_be_bytes());
        prop_assert_eq!(&bytes[transport + 2..transport + 4], &packet.server_port.to_be_bytes());
        prop_assert!(packet.client_port != 0 && packet.server_port != 0);
        prop_assert_eq!(packet.role == Role::Datagram, packet.protocol == Protocol::Udp);
        Ok(())
    });
}

#[test]
fn the_strategies_reach_every_reason_of_the_parser() {
    let reasons: HashSet<_> =
        samples(anything(), 5_000).filter_map(|sample| parse(&sample.frame()).err()).collect();
    let faults: HashSet<_> = samples(faulty(), 5_000).map(|(_, fault, _)| discriminant(&fault)).collect();
    assert_eq!(reasons, HashSet::from(BY_FORM));
    assert!(faults.contains(&discriminant(&Fault::UdpTooLong(1))));
    assert_eq!(faults.len(), 19, "every kind of fault");
}

/// Whether etherparse calls the checksums of IPv4 and of the transport right.
fn has_right_checksums(frame: &[u8]) -> bool {
    let ip = Ipv4HeaderSlice::from_slice(&frame[14..]).expect("an IPv4 header");
    let transport = &frame[14 + ip.slice().len()..14 + usize::from(ip.total_len())];
    let (expected, found) = if ip.protocol() == IpNumber::TCP {
        let tcp = TcpHeaderSlice::from_slice(transport).expect("a TCP header");
        let payload = &transport[tcp.slice().len()..];
        (tcp.calc_checksum_ipv4(&ip, payload).expect("not too long"), tcp.checksum())
    } else {
        let udp = UdpHeaderSlice::from_slice(transport).expect("a UDP header").to_header();
        let payload = &transport[8..];
        (udp.calc_checksum_ipv4(&ip.to_header(), payload).expect("not too long"), udp.checksum)
    };
    ip.to_header().calc_header_checksum() == ip.header_checksum() && expected == found
}

#[test]
fn a_frame_keeps_right_checksums_with_another_address() {
    for spec in samples(valid(), 20_000) {
        let spec = Spec { payload: spec.payload % 1_500, fragment: 0, checksum: true, ..exact(&spec) };
        let frame = spec.build().bytes();
        assert!(has_right_checksums(&frame), "{spec:?}");
        let carried = with_address(&frame, Address::Destination, DEFAULT_ALIAS);
        assert!(has_right_checksums(&carried), "{spec:?}");
        let expected = Spec { destination: DEFAULT_ALIAS, ..spec };
        assert_eq!(carried, expected.build().bytes(), "{expected:?}");
        assert_eq!(with_address(&carried, Address::Destination, [127, 0, 0, 1]), frame, "and back");
    }
}

#[test]
fn a_wrong_checksum_stays_wrong_and_none_stays_none() {
    let tcp = Spec::tcp(50_000, 8080, 0x10, 100).build().bytes();
    let udp = Spec::udp(50_000, 8080, 100).build().bytes();
    assert!(!has_right_checksums(&with_address(&tcp, Address::Destination, DEFAULT_ALIAS)));
    let carried = with_address(&udp, Address::Destination, DEFAULT_ALIAS);
    assert_eq!(carried[14 + 20 + 6..][..2], [0, 0]);
    assert_eq!(carried[14 + 20..], udp[14 + 20..], "no byte of the datagram changes");
}
