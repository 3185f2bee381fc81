//! Checksums of carried packets, both ways, by receivers that check them: a raw socket in the guest, which sees what the
//! stack delivers behind NAT, and a packet socket at Windows' end of the cable.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use socket2::Protocol;
use wsl_mirror_core::abi::DEFAULT_ALIAS;
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load_with, nft, windows},
    checksums::{
        Delivered, Sum, check, checksum, compute_in_software, pseudo_header, set_ip_options, udp_socket,
    },
    loopback, nat, pace,
    raw::RawSocket,
    servers,
    services::Pattern,
    udp,
};

use crate::world::{accept, counted, there_and_back, udp_datagram};

/// Three NOPs and the end of the list: nobody acts on them, and the transport header moves.
const OPTIONS: [u8; 4] = [1, 1, 1, 0];
const PORT: u16 = 8100;

/// Who computes checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The sender's stack, before the cable: the receiver sees right ones.
    Software,
    /// The NIC, as it promises: the receiver sees the pseudo header's (`CHECKSUM_PARTIAL`).
    Hardware,
}

/// A lab in which nothing but carried flows gets an answer, and what watches there.
struct Checked {
    lab: Lab,
    in_the_guest: [Delivered; 2],
    at_windows: RawSocket,
}

impl Checked {
    #[track_caller]
    fn new(by: By) -> Self {
        let lab = Lab::builder().build().or_panic();
        nat::trap(lab.guest()).or_panic();
        if by == By::Software {
            compute_in_software(lab.guest(), "loopback0").or_panic();
            compute_in_software(lab.windows(), "winlo0").or_panic();
        }
        load_with(&lab, STEER);
        let in_the_guest =
            [Protocol::TCP, Protocol::UDP].map(|protocol| Delivered::open(lab.guest(), protocol).or_panic());
        let at_windows = RawSocket::open(lab.windows(), "winlo0").or_panic();
        Self { lab, in_the_guest, at_windows }
    }

    /// The IPv4 packets since the last look: those delivered to the port, and those that Windows got from there.
    #[track_caller]
    fn packets(&self) -> [Vec<Vec<u8>>; 2] {
        let limit = pace::limit(Duration::from_millis(20));
        let to = self.in_the_guest.iter().flat_map(|socket| socket.to_port(PORT, limit).or_panic()).collect();
        let frames = self.at_windows.collect(limit, |frame| !frame.outgoing).or_panic();
        // Later fragments have no ports; nothing else comes from this machine.
        let from = frames.iter().filter_map(|frame| frame.ipv4().map(<[u8]>::to_vec)).collect();
        [to, from]
    }

    /// That there are packets either way, each with one of these sums.
    #[track_caller]
    fn all_are(&self, sums: &[Sum], what: &str) -> [Vec<Vec<u8>>; 2] {
        let packets = self.packets();
        for (packets, way) in packets.iter().zip(["to the port", "from it"]) {
            assert!(!packets.is_empty(), "{what}: nothing {way}");
            for packet in packets {
                let found = check(packet);
                let head = &packet[..packet.len().min(64)];
                assert!(found.is_some_and(|sum| sums.contains(&sum)), "{what}, {way}: {found:?} {head:x?}");
            }
        }
        packets
    }
}

/// The stack's own counters of wrong checksums.
#[track_caller]
fn assert_none_was_wrong(lab: &Lab) {
    for namespace in [lab.guest(), lab.windows()] {
        let counters = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).or_panic();
        for protocol in ["Tcp:", "Udp:", "Ip:"] {
            let mut lines = counters.lines().filter(|line| line.starts_with(protocol));
            let (Some(names), Some(values)) = (lines.next(), lines.next()) else { panic!("{counters}") };
            for (name, value) in names.split(' ').zip(values.split(' ')) {
                let is_wrong = name.contains("CsumErrors") || name.contains("HdrErrors");
                assert!(!is_wrong || value == "0", "{protocol} {name} {value} in the {}", namespace.name());
            }
        }
    }
}

#[test]
fn checksums_are_right_by_software_and_by_hardware() {
    for (by, sum) in [(By::Software, Sum::Full), (By::Hardware, Sum::PseudoHeader)] {
        let checked = Checked::new(by);
        let _servers = [
            servers::tcp_echo(checked.lab.guest(), loopback(PORT)).or_panic(),
            servers::udp_echo(checked.lab.guest(), loopback(PORT)).or_panic(),
        ];
        windows(&checked.lab, PORT).echo(&[7; 5001]).or_panic();
        // A reset has its checksum from the start, as the stack's other answers of its own have.
        let sums = [sum, Sum::Full];
        let [to, from] = checked.all_are(&sums, &format!("TCP by {by:?}"));
        assert!(to.iter().chain(&from).any(|packet| check(packet) == Some(sum)), "by {by:?}");
        for length in [0, 1, 2, 1001, 1472] {
            let socket = udp::Client::new(checked.lab.windows(), loopback(PORT)).connect().or_panic();
            assert_eq!(udp::exchange(&socket, &vec![9; length]).map(|reply| reply.len()), Ok(length));
        }
        checked.all_are(&sums, &format!("UDP by {by:?}"));
        assert_none_was_wrong(&checked.lab);
    }
}

/// A server in the guest whose answers have IPv4 options as well.
#[track_caller]
fn udp_server(lab: &Lab, options: &[u8], with_checksum: bool) -> UdpSocket {
    let server = udp_socket(lab.guest(), loopback(PORT), options, with_checksum).or_panic();
    server.set_read_timeout(Some(udp::limit())).or_panic();
    server
}

#[track_caller]
fn udp_client(lab: &Lab, at: SocketAddrV4, options: &[u8], with_checksum: bool) -> UdpSocket {
    let client = udp_socket(lab.windows(), at, options, with_checksum).or_panic();
    client.set_read_timeout(Some(udp::limit())).or_panic();
    client
}

#[test]
fn packets_with_ipv4_options_keep_right_checksums() {
    for (by, sum) in [(By::Software, Sum::Full), (By::Hardware, Sum::PseudoHeader)] {
        let checked = Checked::new(by);
        let lab = &checked.lab;
        let server = udp_server(lab, &OPTIONS, true);
        let client = udp_client(lab, loopback(40_000), &OPTIONS, true);
        there_and_back(&client, &server, PORT, HELLO, HELLO);
        let packets = checked.all_are(&[sum, Sum::Full], "UDP");
        assert!(packets.iter().flatten().all(|packet| packet[0] == 0x46), "24 bytes of header");
        // And in fragments, of which the later ones have none (NOPs are not copied).
        there_and_back(&client, &server, PORT, &[3; 8192], &[3; 8192]);
        checked.all_are(&[sum, Sum::Full, Sum::Fragment], "UDP in fragments");

        let listener = lab.guest().enter(|| TcpListener::bind(loopback(PORT))).or_panic();
        set_ip_options(&listener, &OPTIONS).or_panic();
        let mut connection = windows(lab, PORT).connect().or_panic();
        set_ip_options(&connection, &OPTIONS).or_panic();
        let (mut served, _) = accept(&listener).or_panic();
        set_ip_options(&served, &OPTIONS).or_panic();
        checked.packets();
        let request = [5; 4000];
        connection.write_all(&request).or_panic();
        served.read_exact(&mut [0; 4000]).or_panic();
        served.write_all(&request).or_panic();
        connection.read_exact(&mut [0; 4000]).or_panic();
        let packets = checked.all_are(&[sum, Sum::Full], "TCP");
        assert!(packets.iter().flatten().all(|packet| packet[0] == 0x46), "24 bytes of header");
        assert_none_was_wrong(lab);
    }
}

#[test]
fn datagrams_without_a_checksum_stay_without_one() {
    let checked = Checked::new(By::Software);
    let server = udp_server(&checked.lab, &[], false);
    let client = udp_client(&checked.lab, loopback(40_000), &[], false);
    there_and_back(&client, &server, PORT, HELLO, HELLO);
    checked.all_are(&[Sum::Absent], "without a checksum");
    there_and_back(&client, &server, PORT, &[3; 8192], &[3; 8192]);
    checked.all_are(&[Sum::Absent, Sum::Fragment], "without a checksum, in fragments");
}

/// The payload of four bytes by which a datagram between these addresses has the checksum 0, which is sent as 0xffff.
fn with_checksum_zero(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> [u8; 4] {
    let sum = |payload: [u8; 4]| {
        checksum(&udp_datagram(from.1, to.1, &payload), pseudo_header(from.0, to.0, 17, 12))
    };
    let first = sum([0, 0, 1, 0]).to_be_bytes();
    let payload = [first[0], first[1], 1, 0];
    assert_eq!(sum(payload), 0);
    payload
}

/// 0 says that there is no checksum: a computed one must never become 0, neither on the way to the alias nor back.
#[test]
fn a_checksum_that_becomes_zero_is_still_one() {
    const LOCALHOST: [u8; 4] = [127, 0, 0, 1];
    let checked = Checked::new(By::Software);
    let server = udp_server(&checked.lab, &[], true);
    let client = udp_client(&checked.lab, loopback(40_000), &[], true);
    let ends = |source, destination| {
        [
            with_checksum_zero((source, 40_000), (destination, PORT)),
            with_checksum_zero((destination, PORT), (source, 40_000)),
        ]
    };
    // 0 on the alias, and 0 where the flow begins and ends.
    for payload in [ends(LOCALHOST, DEFAULT_ALIAS), ends(LOCALHOST, LOCALHOST)].concat() {
        there_and_back(&client, &server, PORT, &payload, &payload);
        checked.all_are(&[Sum::Full], &format!("{payload:x?}"));
    }
}

/// What TCP hands to the NIC in one piece is one packet to the programs; its segments are made behind them.
#[test]
fn segments_of_super_packets_have_right_checksums() {
    const BYTES: u64 = 4 << 20;
    for by in [By::Software, By::Hardware] {
        let checked = Checked::new(by);
        let lab = &checked.lab;
        nft(
            lab,
            "add table ip sizes; add counter ip sizes sent; add counter ip sizes came; \
             add chain ip sizes in { type filter hook prerouting priority raw; }; \
             add chain ip sizes out { type filter hook postrouting priority 200; }; \
             add rule ip sizes in iifname loopback0 ip length > 1500 counter name came; \
             add rule ip sizes out oifname loopback0 ip length > 1500 counter name sent",
        );
        let listener = lab.guest().enter(|| TcpListener::bind(loopback(PORT))).or_panic();
        let mut connection = windows(lab, PORT).connect().or_panic();
        let (mut served, _) = accept(&listener).or_panic();
        thread::scope(|scope| {
            for mut sender in [connection.try_clone().or_panic(), served.try_clone().or_panic()] {
                scope.spawn(move || Pattern::default().write(&mut sender, BYTES).or_panic());
            }
            let receiving = scope.spawn(|| receive(&mut served, BYTES));
            receive(&mut connection, BYTES);
            receiving.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        });
        let sum = if by == By::Software { Sum::Full } else { Sum::PseudoHeader };
        let [to, from] = checked.all_are(&[sum, Sum::Full], &format!("a stream by {by:?}"));
        let longest = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).max();
        let super_packets = |name: &str| counted(&nft(lab, &format!("list counter ip sizes {name}")));
        assert!(super_packets("sent") > 0, "by {by:?}");
        if by == By::Software {
            assert_eq!((longest(&to), longest(&from)), (Some(1500), Some(1500)), "segments");
        } else {
            assert!(super_packets("came") > 0);
            assert!(longest(&to) > Some(1500) && longest(&from) > Some(1500), "super-packets");
        }
        assert_none_was_wrong(lab);
    }
}

#[track_caller]
fn receive(stream: &mut std::net::TcpStream, bytes: u64) {
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 64 * 1024];
    while pattern.position() < bytes {
        let length = stream.read(&mut buffer).or_panic();
        assert!(length > 0, "closed after {} bytes", pattern.position());
        assert_eq!(pattern.check(&buffer[..length]), Ok(()));
    }
}
