//! Checksums of direct packets, both ways, by receivers that check them: a raw socket in the container, behind both
//! translations, and a packet socket at Windows' end of the cable.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use socket2::Protocol;
use wsl_mirror_core::abi::{DEFAULT_ALIAS, DEFAULT_SOURCE_ALIAS, Service, Target};
use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, windows, windows_udp},
    checksums::{Delivered, Sum, check, checksum, compute_in_software, pseudo_header, udp_socket},
    loopback, pace,
    raw::RawSocket,
    servers,
    services::TcpService,
    udp,
};

use super::machine::{BRIDGE_ADDRESS, FIRST, IN_CONTAINER, Machine, PORT};
use crate::world::{download, there_and_back, udp_datagram, upload};

/// The container's port for a server of the test's own.
const OWN: u16 = 90;

/// Who computes checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The sender's stack, before the cable: the receiver sees right ones.
    Software,
    /// The NIC, as it promises: the receiver sees the pseudo header's (`CHECKSUM_PARTIAL`).
    Hardware,
}

struct Checked {
    machine: Machine,
    in_the_container: [Delivered; 2],
    at_windows: RawSocket,
}

impl Checked {
    #[track_caller]
    fn new(by: By) -> Self {
        let machine = Machine::direct(Service::Proxy);
        let (guest, container) = (machine.lab.guest(), machine.container());
        if by == By::Software {
            let veth = format!("lab-veth{FIRST}");
            let nics = [
                (machine.lab.windows(), "winlo0"),
                (guest, "loopback0"),
                (guest, veth.as_str()),
                (container, "eth0"),
            ];
            for (namespace, nic) in nics {
                compute_in_software(namespace, nic).or_panic();
            }
        }
        let in_the_container =
            [Protocol::TCP, Protocol::UDP].map(|protocol| Delivered::open(container, protocol).or_panic());
        let at_windows = RawSocket::open(machine.lab.windows(), "winlo0").or_panic();
        Self { machine, in_the_container, at_windows }
    }

    /// The IPv4 packets since the last look: those delivered to the container's port, and those that Windows got.
    #[track_caller]
    fn packets(&self, port: u16) -> [Vec<Vec<u8>>; 2] {
        let limit = pace::limit(Duration::from_millis(20));
        let to =
            self.in_the_container.iter().flat_map(|socket| socket.to_port(port, limit).or_panic()).collect();
        let frames = self.at_windows.collect(limit, |frame| !frame.outgoing).or_panic();
        let from = frames.iter().filter_map(|frame| frame.ipv4().map(<[u8]>::to_vec)).collect();
        [to, from]
    }

    /// That there are packets either way, each with one of these sums, and at least one with the first.
    #[track_caller]
    fn all_are(&self, port: u16, sums: &[Sum], what: &str) {
        let all = self.packets(port);
        for (packets, way) in all.iter().zip(["to the port", "from it"]) {
            assert!(!packets.is_empty(), "{what}: nothing {way}");
            assert!(
                packets.iter().any(|packet| check(packet) == Some(sums[0])),
                "{what}, {way}: none {:?}",
                sums[0]
            );
            for packet in packets {
                let found = check(packet);
                let head = &packet[..packet.len().min(64)];
                assert!(found.is_some_and(|sum| sums.contains(&sum)), "{what}, {way}: {found:?} {head:x?}");
            }
        }
    }

    /// A server of the test's own in the container, to which UDP goes from now on.
    #[track_caller]
    fn udp_server(&self, with_checksum: bool) -> UdpSocket {
        let at = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, OWN);
        let server = udp_socket(self.machine.container(), at, &[], with_checksum).or_panic();
        server.set_read_timeout(Some(udp::limit())).or_panic();
        self.machine.write(Target { port: OWN, ..self.machine.target(FIRST) });
        server
    }
}

#[test]
fn checksums_are_right_by_software_and_by_hardware() {
    for (by, sum) in [(By::Software, Sum::Full), (By::Hardware, Sum::PseudoHeader)] {
        let checked = Checked::new(by);
        let lab = &checked.machine.lab;
        // A reset has its checksum from the start, as the stack's other answers of its own have.
        let sums = [sum, Sum::Full];
        windows(lab, PORT).echo(&[7; 5001]).or_panic();
        checked.all_are(IN_CONTAINER, &sums, &format!("TCP by {by:?}"));
        for length in [0, 1, 2, 1001, 1472] {
            let socket = windows_udp(lab, PORT).connect().or_panic();
            assert_eq!(udp::exchange(&socket, &vec![9; length]).map(|reply| reply.len()), Ok(length));
        }
        checked.all_are(IN_CONTAINER, &sums, &format!("UDP by {by:?}"));
        let fragments = [Sum::Fragment, sum, Sum::Full];
        assert_eq!(windows_udp(lab, PORT).request(&[3; 9000]), Ok(vec![3; 9000]));
        // A raw socket sees the datagram that the stack has put together.
        let [to, from] = checked.packets(IN_CONTAINER);
        assert!(!to.is_empty() && from.len() == 7, "{} and {} packets", to.len(), from.len());
        for packet in from {
            assert!(check(&packet).is_some_and(|sum| fragments.contains(&sum)), "{by:?}");
        }
        // Windows may take a port again for the next datagram.
        assert!(checked.machine.packets("direct_new") >= 3);
        assert_eq!(checked.machine.packets("steer_instead"), 0);
    }
}

/// What TCP hands to the NIC in one piece is one packet to the programs; its segments are made behind them.
#[test]
fn super_packets_arrive_whole_both_ways() {
    const BYTES: u64 = 2 << 20;
    for (by, sum) in [(By::Software, Sum::Full), (By::Hardware, Sum::PseudoHeader)] {
        let checked = Checked::new(by);
        let (machine, lab) = (&checked.machine, &checked.machine.lab);
        let all = |port| (Ipv4Addr::UNSPECIFIED, port);
        let _servers = [
            servers::tcp(machine.container(), all(OWN), TcpService::Source { bytes: BYTES }).or_panic(),
            servers::tcp(machine.container(), all(OWN + 1), TcpService::Sink).or_panic(),
        ];
        let _listeners = [machine.publish(8090, OWN), machine.publish(8091, OWN + 1)];
        upload(&windows(lab, 8091), BYTES, || ()).or_panic();
        let [to, from] = checked.packets(OWN + 1);
        download(&windows(lab, 8090), BYTES, || ()).or_panic();
        let [more, data] = checked.packets(OWN);
        for packet in to.iter().chain(&from).chain(&more).chain(&data) {
            assert!(
                check(packet).is_some_and(|found| [sum, Sum::Full].contains(&found)),
                "{by:?}: {:x?}",
                &packet[..40]
            );
        }
        let longest = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).max().unwrap_or(0);
        let are_super = (longest(&to) > 1500, longest(&data) > 1500);
        assert_eq!(
            are_super,
            (by == By::Hardware, by == By::Hardware),
            "{by:?}: {} {}",
            longest(&to),
            longest(&data)
        );
        assert_eq!(machine.packets("direct_new"), 2);
    }
}

#[test]
fn datagrams_without_a_checksum_stay_without_one() {
    let checked = Checked::new(By::Software);
    let server = checked.udp_server(false);
    let client = udp_socket(checked.machine.lab.windows(), loopback(40_000), &[], false).or_panic();
    client.set_read_timeout(Some(udp::limit())).or_panic();
    there_and_back(&client, &server, PORT, HELLO, HELLO);
    checked.all_are(OWN, &[Sum::Absent], "without a checksum");
}

/// The payload of four bytes by which a datagram between these ends has the checksum 0, which is sent as 0xffff.
fn with_checksum_zero(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> [u8; 4] {
    let pseudo = pseudo_header(from.0.octets(), to.0.octets(), 17, 12);
    let sum = |payload: [u8; 4]| checksum(&udp_datagram(from.1, to.1, &payload), pseudo);
    let first = sum([0, 0, 1, 0]).to_be_bytes();
    let payload = [first[0], first[1], 1, 0];
    assert_eq!(sum(payload), 0);
    payload
}

/// 0 says that there is no checksum: a computed one must never become 0 under any name that the flow has.
#[test]
fn a_checksum_that_becomes_zero_is_still_one() {
    let checked = Checked::new(By::Software);
    let server = checked.udp_server(true);
    let client = udp_socket(checked.machine.lab.windows(), loopback(40_000), &[], true).or_panic();
    client.set_read_timeout(Some(udp::limit())).or_panic();
    let [local, alias, source_alias] =
        [Ipv4Addr::LOCALHOST, DEFAULT_ALIAS.into(), DEFAULT_SOURCE_ALIAS.into()];
    let container = Ipv4Addr::new(172, 30, 0, FIRST);
    let names = [
        ((local, 40_000), (local, PORT)),
        ((local, 40_000), (alias, PORT)),
        ((source_alias, 40_000), (alias, PORT)),
        ((source_alias, 40_000), (container, OWN)),
        ((BRIDGE_ADDRESS, 40_000), (container, OWN)),
    ];
    for (from, to) in names {
        there_and_back(&client, &server, PORT, &with_checksum_zero(from, to), &with_checksum_zero(to, from));
        checked.all_are(OWN, &[Sum::Full], &format!("{from:?} {to:?}"));
    }
}
