//! Datagrams in fragments: all of one go the same way, and only the first one has ports.

use std::net::UdpSocket;

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, STEER, load, load_with, windows_udp},
    loopback,
    raw::RawSocket,
    servers, udp,
};

use crate::world::{
    HANG, Probe, Watch, caught, engine_rule, exempt, fragments, raw_drop, services, udp_datagram,
};

const EIGHT_KB: usize = 8192;
/// The largest payload of UDP on IPv4.
const SIXTY_FOUR_KB: usize = 65_507;

fn payload(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[1] ^ seed).collect()
}

/// That the datagram comes back whole.
#[track_caller]
fn comes_back(socket: &UdpSocket, payload: &[u8], what: &str) {
    let mut reply = vec![0; 65_536];
    let length = socket.recv(&mut reply).with_context(|| what.to_owned()).or_panic();
    assert!(&reply[..length] == payload, "{what}: {length} bytes, or others than were sent");
}

/// Questions and answers, both of which are too long for a packet; under a rule that drops what is not carried.
#[test]
fn fragmented_questions_are_answered_by_fragmented_answers() {
    let lab = services();
    raw_drop(&lab, "udp", 8081);
    let ask = |port, length, limit| {
        let request = payload(length, 0);
        windows_udp(&lab, port).limit(limit).request(&request).map(|reply| reply.len())
    };
    for port in [8080, 8081] {
        assert_eq!(ask(port, EIGHT_KB, HANG), Err(udp::Failure::TimedOut), "without wsl-mirror");
    }
    load(&lab);
    let probe = Probe::new(&lab);
    probe.add("seen", "udp dport { 8080, 8081 }");
    probe.add("unmarked", "udp dport { 8080, 8081 } meta mark & 0x80 == 0");
    for _ in 0..5 {
        for port in [8080, 8081] {
            for length in [EIGHT_KB, SIXTY_FOUR_KB] {
                assert_eq!(ask(port, length, udp::limit()), Ok(length), "port {port}");
            }
        }
    }
    assert_eq!((probe.packets("seen"), probe.packets("unmarked")), (20, 0), "reassembled");
    // Six fragments, or 45: each but the first.
    assert!(lab.packets("steer_fragment").or_panic() >= 10 * (5 + 44));
    assert!(lab.packets("steer_reply").or_panic() >= 10 * (6 + 45), "each fragment of the answers");
    assert_eq!(lab.packets("pass_later_fragment").or_panic(), 0);
    // Not before: with a copy at a sniffer, a large datagram takes more memory than its socket has.
    let watch = Watch::start(&lab);
    assert_eq!(ask(8080, EIGHT_KB, udp::limit()), Ok(EIGHT_KB));
    watch.never_saw_the_alias("in fragments");
}

/// An echo service behind an engine's rule, loaded, and Windows' end of the cable.
#[track_caller]
fn behind_an_engine() -> (Lab, servers::Server, RawSocket) {
    let lab = Lab::builder().build().or_panic();
    engine_rule(&lab, "udp", 8100);
    let server = servers::udp_echo(lab.guest(), loopback(8100)).or_panic();
    load_with(&lab, STEER);
    let nic = RawSocket::sender(lab.windows(), "winlo0").or_panic();
    (lab, server, nic)
}

#[test]
fn datagrams_with_interleaved_fragments_are_carried() {
    let (lab, _server, nic) = behind_an_engine();
    let _other = servers::udp_echo(lab.guest(), loopback(8101)).or_panic();
    exempt(&lab, "add", "8101");
    for length in [EIGHT_KB, SIXTY_FOUR_KB] {
        for id in 1..=pace(10) {
            // Two carried datagrams and one that passes, fragment by fragment; one has the other's identification.
            let flows = [(40_000, 8100, id), (40_001, 8100, id + 1000), (40_002, 8101, id + 2000)];
            let sockets =
                flows.map(|(from, to, _)| windows_udp(&lab, to).from_port(from).connect().or_panic());
            let payloads = [1, 2, 3].map(|seed| payload(length, seed));
            let trains: Vec<_> = flows
                .iter()
                .zip(&payloads)
                .map(|((from, to, id), payload)| fragments(&udp_datagram(*from, *to, payload), *id))
                .collect();
            for index in 0..trains[0].len() {
                for train in &trains {
                    nic.send(&train[index]).or_panic();
                }
            }
            for (socket, payload) in sockets.iter().zip(&payloads) {
                comes_back(socket, payload, &format!("{length} bytes, identification {id}"));
            }
        }
    }
    assert_eq!(caught(&lab), 0);
    assert!(lab.packets("pass_later_fragment").or_panic() > 0, "those of the exempt port");
}

fn pace(usual: usize) -> u16 {
    u16::try_from(wsl_mirror_lab::pace::rounds(usual)).unwrap_or(u16::MAX)
}

/// A later fragment that has overtaken its first one cannot be decided about: it passes, and the datagram is lost.
#[test]
fn an_overtaking_fragment_passes_and_costs_its_datagram_alone() {
    let (lab, _server, nic) = behind_an_engine();
    let socket = windows_udp(&lab, 8100).from_port(40_000).limit(HANG).connect().or_panic();
    let payload = payload(EIGHT_KB, 0);
    let train = |id| fragments(&udp_datagram(40_000, 8100, &payload), id);
    for (id, order) in [(1, [1, 0, 2, 3, 4, 5]), (2, [5, 4, 3, 2, 1, 0]), (3, [1, 2, 3, 4, 5, 0])] {
        let before = lab.packets("pass_later_fragment").or_panic();
        let train = train(id);
        for index in order {
            nic.send(&train[index]).or_panic();
        }
        assert!(socket.recv(&mut [0; 64]).is_err(), "order {order:?}");
        let ahead = order.iter().take_while(|index| **index != 0).count() as u64;
        assert_eq!(lab.packets("pass_later_fragment").or_panic(), before + ahead, "order {order:?}");
    }
    // In any order behind the first one.
    for (id, order) in [(4, [0, 1, 2, 3, 4, 5]), (5, [0, 5, 4, 3, 2, 1]), (6, [0, 3, 5, 1, 4, 2])] {
        let train = train(id);
        for index in order {
            nic.send(&train[index]).or_panic();
        }
        comes_back(&socket, &payload, &format!("order {order:?}"));
    }
}

/// The record of a carried datagram must not take along one of the same number that passes.
#[test]
fn a_reused_identification_misleads_no_later_datagram() {
    let (lab, _server, nic) = behind_an_engine();
    let _other = servers::udp_echo(lab.guest(), loopback(8101)).or_panic();
    exempt(&lab, "add", "8101");
    let carried = windows_udp(&lab, 8100).from_port(40_000).connect().or_panic();
    let exempt = windows_udp(&lab, 8101).from_port(40_001).connect().or_panic();
    for round in 0..pace(10) {
        for (socket, from, to) in [(&carried, 40_000, 8100_u16), (&exempt, 40_001, 8101)] {
            let payload = payload(EIGHT_KB, to.to_le_bytes()[0]);
            for fragment in fragments(&udp_datagram(from, to, &payload), 77) {
                nic.send(&fragment).or_panic();
            }
            comes_back(socket, &payload, &format!("port {to}, round {round}"));
        }
    }
    assert_eq!(caught(&lab), 0);
}
