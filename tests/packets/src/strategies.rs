//! Strategies for frames.

use proptest::{prelude::*, sample::select};
use wsl_mirror_core::abi::Reason;

use crate::{Fault, Sample, Spec, TO_US, Transport, fault};

/// Server ports that come up often, so that a test can prepare something behind them.
pub const SERVER_PORTS: [u16; 8] = [8080, 8081, 8082, 8083, 8084, 8085, 8086, 8087];
/// Client ports that come up often, so that flows have more than one packet. Among them are ports of servers:
/// their packets are the replies of other flows.
pub const CLIENT_PORTS: [u16; 6] = [50_000, 50_001, 50_002, 50_003, 8080, 8081];

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A frame with a TCP or UDP packet from 127.0.0.0/8 to 127.0.0.1 in it, with nothing wrong: with and without
/// options, first fragments, padding, super-packets up to BIG TCP's.
pub fn valid() -> BoxedStrategy<Spec> {
    let flags = prop_oneof![3 => Just(SYN), 1 => Just(SYN | 0xc0), 3 => Just(ACK), 2 => any::<u8>()];
    let tcp =
        (flags, options()).prop_map(|(flags, options)| Transport::Tcp { flags, options, data_offset: None });
    let transport = prop_oneof![2 => tcp, 1 => Just(Transport::Udp { length: None })];
    let source = prop_oneof![
        3 => Just([127, 0, 0, 1]),
        1 => any::<[u8; 3]>().prop_map(|[a, b, c]| [127, a, b, c]),
    ];
    let ports = (
        prop_oneof![2 => select(CLIENT_PORTS.as_slice()), 1 => 1..=u16::MAX],
        prop_oneof![6 => select(SERVER_PORTS.as_slice()), 1 => select(CLIENT_PORTS.as_slice()), 1 => 1..=u16::MAX],
    );
    // Nothing, don't fragment, the first of several, the bit that nobody uses.
    let fragment = prop_oneof![4 => Just(0_u16), 4 => Just(0x4000), 2 => Just(0x2000), 1 => Just(0x8000)];
    let padding = prop_oneof![3 => Just(0_usize), 1 => 1..60_usize];
    (transport, any::<bool>(), source, ports, options(), payload(), fragment, padding, any::<u16>())
        .prop_map(|(transport, checksum, source, ports, options, payload, fragment, padding, length)| {
            let mut spec = Spec {
                to: TO_US,
                source,
                options,
                fragment,
                padding,
                transport,
                checksum,
                ..Spec::udp(ports.0, ports.1, payload)
            };
            if matches!(spec.transport, Transport::Udp { .. }) {
                udp_lengths(&mut spec, length);
            } else if spec.packet_len() > usize::from(u16::MAX) {
                // BIG TCP is neither a fragment nor padded.
                spec.fragment = 0;
                spec.padding = 0;
            }
            spec
        })
        .boxed()
}

/// There is no BIG UDP; a first fragment knows the length of the whole, a super-packet that of a segment.
fn udp_lengths(spec: &mut Spec, random: u16) {
    spec.payload = spec.payload.min(usize::from(u16::MAX) - spec.ip_header() - 8);
    let there = u16::try_from(8 + spec.payload).unwrap_or(u16::MAX);
    let length = match spec.fragment {
        0x2000 => random.max(there),
        _ if spec.payload > 1500 => random.clamp(8, there),
        _ => return,
    };
    spec.transport = Transport::Udp { length: Some(length) };
}

/// A frame with exactly one fault, and the reason for which it passes.
pub fn faulty() -> BoxedStrategy<(Spec, Fault, Reason)> {
    (valid(), fault())
        .prop_map(|(mut spec, fault)| {
            let reason = fault.apply(&mut spec);
            (spec, fault, reason)
        })
        .boxed()
}

/// A frame in which bytes were changed, and which may have been cut off or prolonged.
pub fn mutated() -> BoxedStrategy<Sample> {
    let change = (
        any::<prop::sample::Index>(),
        prop_oneof![(0..8_u8).prop_map(|bit| (0xff, 1 << bit)), any::<u8>().prop_map(|byte| (0, byte)),],
    );
    let length = prop_oneof![
        4 => Just(None),
        2 => any::<prop::sample::Index>().prop_map(|index| Some(index.index(110))),
        1 => Just(Some(65_549)),
        1 => Just(Some(65_550)),
    ];
    (valid(), prop::collection::vec(change, 1..4), length)
        .prop_map(|(spec, changes, length)| {
            let mut sample = spec.build();
            // Most of a frame is payload; what matters is in front.
            let headers = 14 + spec.ip_header() + spec.transport_header();
            for (index, (keep, flip)) in changes {
                let byte = &mut sample.head[index.index(headers)];
                *byte = (*byte & keep) ^ flip;
            }
            match length {
                Some(len) if len < sample.len() => sample.truncated(len),
                Some(len) => Sample { tail: len - sample.head.len(), ..sample },
                None => sample,
            }
        })
        .boxed()
}

/// Everything: good frames, one fault, two faults, changed bytes, noise.
pub fn anything() -> BoxedStrategy<Sample> {
    let twice_faulty = (faulty(), fault()).prop_map(|((mut spec, ..), fault)| {
        fault.apply(&mut spec);
        spec.build()
    });
    let noise = (any::<bool>(), prop::collection::vec(any::<u8>(), 0..120)).prop_map(|(ipv4, mut head)| {
        if ipv4 && head.len() >= 14 {
            head[..6].copy_from_slice(&TO_US);
            head[12..14].copy_from_slice(&[0x08, 0x00]);
        }
        Sample { head, tail: 0, vlan_tag: false }
    });
    prop_oneof![
        4 => valid().prop_map(|spec| spec.build()),
        4 => faulty().prop_map(|(spec, ..)| spec.build()),
        2 => twice_faulty,
        5 => mutated(),
        1 => noise,
    ]
    .boxed()
}

fn options() -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        3 => Just(Vec::new()),
        1 => Just(vec![1; 40]),
        1 => prop::collection::vec(any::<u8>(), 1..=40),
    ]
    .boxed()
}

fn payload() -> BoxedStrategy<usize> {
    prop_oneof![
        2 => Just(0_usize),
        4 => 1..64_usize,
        4 => 64..1461_usize,
        2 => 1461..3000_usize,
        // GRO's, up to the last length that the field can say, and BIG TCP's.
        1 => 3000..65_435_usize,
        1 => 65_480..65_600_usize,
        1 => 65_600..524_288_usize,
    ]
    .boxed()
}
