//! A neighbour on the LAN: what it reaches, and what it can send.

use std::{net::Ipv4Addr, time::Duration};

use wsl_mirror_lab::{
    Container, Docker, DockerOptions, ETH0_MAC, LAN_ADDRESS, Lab, NEIGHBOUR_ADDRESS, NEIGHBOUR_MAC,
    NEIGHBOUR_NIC, Service, Transport, checks::HELLO, raw::RawSocket, servers, tcp, udp,
};
use wsl_mirror_windows::checksum;

use crate::loopback;

#[test]
fn a_neighbour_reaches_published_ports_and_windows() {
    let lab = Lab::builder().build().unwrap();
    let neighbour = lab.add_neighbour().unwrap();
    let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    docker
        .run(
            Container::new("echo")
                .serve(Service::TcpEcho { port: 7 })
                .serve(Service::UdpEcho { port: 7 })
                .publish("8080:7")
                .publish("8080:7/udp"),
        )
        .unwrap();
    let _servers = [
        servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8100)).unwrap(),
        servers::udp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8100)).unwrap(),
        servers::tcp_echo(lab.windows(), (Ipv4Addr::UNSPECIFIED, 9100)).unwrap(),
    ];
    for port in [8080, 8100, 9100] {
        let reply = tcp::Client::new(&neighbour, (LAN_ADDRESS, port)).echo(HELLO);
        assert_eq!(reply, Ok(HELLO.to_vec()), "TCP {port}");
    }
    for port in [8080, 8100] {
        let reply = udp::Client::new(&neighbour, (LAN_ADDRESS, port)).request(HELLO);
        assert_eq!(reply, Ok(HELLO.to_vec()), "UDP {port}");
    }
    let closed = tcp::Client::new(&neighbour, (LAN_ADDRESS, 9101)).connect().map(drop);
    assert_eq!(closed, Err(tcp::Failure::Refused), "a port that nobody has");
}

#[test]
fn linux_and_windows_reach_a_neighbour() {
    let lab = Lab::builder().build().unwrap();
    let neighbour = lab.add_neighbour().unwrap();
    let _server = servers::tcp_echo(&neighbour, (NEIGHBOUR_ADDRESS, 7000)).unwrap();
    for from in [lab.guest(), lab.windows()] {
        let reply = tcp::Client::new(from, (NEIGHBOUR_ADDRESS, 7000)).echo(HELLO);
        assert_eq!(reply, Ok(HELLO.to_vec()), "{}", from.name());
    }
}

#[test]
fn the_firewall_stops_a_neighbour_too() {
    let lab = Lab::builder().build().unwrap();
    let neighbour = lab.add_neighbour().unwrap();
    let _server = servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8100)).unwrap();
    lab.block_port(Transport::Tcp, 8100).unwrap();
    let client = tcp::Client::new(&neighbour, (LAN_ADDRESS, 8100));
    assert_eq!(client.echo(HELLO), Err(tcp::Failure::ConnectTimedOut));
    lab.unblock_port(Transport::Tcp, 8100).unwrap();
    assert_eq!(client.echo(HELLO), Ok(HELLO.to_vec()));
}

/// moby#45610, moby#49325: `route_localnet` on `eth0` lets such frames in.
#[test]
fn a_neighbours_frame_to_127_0_0_1_is_answered() {
    let lab = Lab::builder().build().unwrap();
    let neighbour = lab.add_neighbour().unwrap();
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    // The guest learns the neighbour's MAC: for a packet from 127.0.0.1 it would ask in the name of 127.0.0.1, in vain.
    let _any = servers::tcp_echo(lab.guest(), (Ipv4Addr::UNSPECIFIED, 8101)).unwrap();
    assert_eq!(tcp::Client::new(&neighbour, (LAN_ADDRESS, 8101)).echo(HELLO), Ok(HELLO.to_vec()));
    let wire = RawSocket::open(&neighbour, NEIGHBOUR_NIC).unwrap();
    let in_guest = RawSocket::open(lab.guest(), "eth0").unwrap();
    let syn = syn_to_loopback(50_000, 8100);
    wire.send(&syn).unwrap();
    let limit = Duration::from_millis(300);
    let arrived = in_guest.collect(limit, |frame| !frame.outgoing && frame.bytes == syn).unwrap();
    assert_eq!(arrived.len(), 1, "as it was sent");
    let answers =
        wire.collect(limit, |frame| !frame.outgoing && frame.ports() == Some((6, 8100, 50_000))).unwrap();
    let flags = answers.first().and_then(|frame| Some(frame.ipv4()?[20 + 13]));
    assert_eq!(flags, Some(0x12), "SYN and ACK, from 127.0.0.1");
}

/// A SYN to 127.0.0.1, in a frame to the MAC of `eth0`.
fn syn_to_loopback(from: u16, to: u16) -> Vec<u8> {
    let (source, destination) = (NEIGHBOUR_ADDRESS.octets(), Ipv4Addr::LOCALHOST.octets());
    let mut ip = [&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0][..], &source, &destination].concat();
    let sum = checksum::sum(&ip);
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let mut tcp = [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
    tcp.extend([0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
    let pseudo = [&source[..], &destination, &[0, 6, 0, 20]].concat();
    let sum = checksum::sum(&[pseudo.as_slice(), &tcp].concat());
    tcp[16..18].copy_from_slice(&(!sum).to_be_bytes());
    [&ETH0_MAC[..], &NEIGHBOUR_MAC, &[0x08, 0x00], &ip, &tcp].concat()
}
