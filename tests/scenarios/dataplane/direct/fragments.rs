//! Datagrams in fragments: all of one go the same way, to the container and back.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Context as _;
use wsl_mirror_core::abi::{Service, Target};
use wsl_mirror_lab::{
    BRIDGE_MAC,
    checks::{HELLO, OrPanic as _, windows_udp},
    checksums::checksum,
    raw::RawSocket,
    udp,
};

use super::machine::{FIRST, Machine, PORT};
use crate::world::{fragments, udp_datagram};

/// The largest payload of UDP on IPv4.
const SIXTY_FOUR_KB: usize = 65_507;

fn payload(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[1] ^ seed).collect()
}

#[test]
fn fragmented_questions_and_answers_are_direct() {
    let machine = Machine::direct(Service::Proxy);
    for length in [9000, SIXTY_FOUR_KB] {
        for seed in 0..5 {
            let request = payload(length, seed);
            assert_eq!(windows_udp(&machine.lab, PORT).request(&request), Ok(request), "{length} bytes");
        }
    }
    assert_eq!((machine.packets("direct_new"), machine.packets("steer_instead")), (10, 0));
    // Seven fragments, or 45: each but the first.
    assert_eq!(machine.packets("direct_fragment"), 5 * (6 + 44));
    assert_eq!(machine.packets("direct_reply"), 5 * (7 + 45), "each fragment of the answers");
    assert_eq!(machine.packets("pass_later_fragment"), 0);
}

/// Of flows that take different ways; in any order behind the first fragment.
#[test]
fn interleaved_fragments_follow_their_first_one() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    let nic = RawSocket::sender(lab.windows(), "winlo0").or_panic();
    let direct = windows_udp(lab, PORT).from_port(40_000).connect().or_panic();
    let steered = windows_udp(lab, PORT).from((Ipv4Addr::LOCALHOST, 40_001)).connect().or_panic();
    assert_eq!(udp::exchange(&direct, HELLO), Ok(HELLO.to_vec()));
    // Begun while direct was avoided, and of no other container: it stays where it is.
    machine.forget_targets();
    wsl_mirror_lab::checks::ok(lab, &["policy", "set", "8080/udp", "steer"]);
    assert_eq!(udp::exchange(&steered, HELLO), Ok(HELLO.to_vec()));
    wsl_mirror_lab::checks::ok(lab, &["policy", "unset", "8080/udp"]);
    machine.aim(FIRST);
    for (round, order) in [[0, 1, 2, 3, 4, 5], [0, 5, 4, 3, 2, 1], [0, 3, 5, 1, 4, 2]].into_iter().enumerate()
    {
        let id = u16::try_from(round + 1).or_panic();
        let payloads = [payload(8192, 1), payload(8192, 2)];
        let trains = [
            fragments(&udp_datagram(40_000, PORT, &payloads[0]), id),
            fragments(&udp_datagram(40_001, PORT, &payloads[1]), id + 100),
        ];
        for index in order {
            for train in &trains {
                nic.send(&train[index]).or_panic();
            }
        }
        for (socket, payload) in [&direct, &steered].into_iter().zip(&payloads) {
            let mut reply = vec![0; 65_536];
            let length = socket.recv(&mut reply).or_panic();
            assert!(&reply[..length] == payload, "order {order:?}: {length} bytes");
        }
    }
    assert_eq!((machine.packets("direct_new"), machine.packets("steer_new")), (1, 1));
    assert_eq!((machine.packets("direct_fragment"), machine.packets("steer_fragment")), (15, 15));
}

/// The container's stack and its network may send them in any order; each gets the same addresses on its way out.
#[test]
fn an_answers_fragments_arrive_in_any_order() {
    let machine = Machine::direct(Service::Proxy);
    let container = machine.container();
    let server = container.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 90))).or_panic();
    server.set_read_timeout(Some(udp::limit())).or_panic();
    machine.write(Target { port: 90, ..machine.target(FIRST) });
    let client = windows_udp(&machine.lab, PORT).connect().or_panic();
    client.send(HELLO).or_panic();
    let (_, from) = server.recv_from(&mut [0; 64]).or_panic();
    let SocketAddr::V4(from) = from else { panic!("{from}") };
    let nic = RawSocket::sender(container, "eth0").or_panic();
    // Machines of other kernels have no sysfs of the container's own.
    let link = container.run("ip", ["-o", "link", "show", "dev", "eth0"]).or_panic().stdout;
    let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    let mac = mac.context("no address of eth0").or_panic();
    let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).or_panic()).collect();
    let orders = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]];
    for (id, order) in (1..).zip(orders) {
        let payload = payload(8192, u8::try_from(id).or_panic());
        let datagram = udp_datagram(90, from.port(), &payload);
        let parts: Vec<_> = datagram.chunks(1480).collect();
        for index in order {
            let more = if index + 1 < parts.len() { 0x2000 } else { 0 };
            let offset = u16::try_from(index * 1480 / 8).or_panic() | more;
            let packet = ipv4(id, offset, [172, 30, 0, FIRST], from.ip().octets(), parts[index]);
            nic.send(&[BRIDGE_MAC.as_slice(), &mac, &[0x08, 0x00], &packet].concat()).or_panic();
        }
        let mut reply = vec![0; 65_536];
        let length = client.recv(&mut reply).unwrap_or_else(|error| panic!("order {order:?}: {error}"));
        assert!(reply[..length] == payload, "order {order:?}: {length} bytes");
    }
}

/// An IPv4 packet of UDP.
fn ipv4(id: u16, fragment: u16, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, 17, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    let sum = checksum(&packet, 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}
