//! Datagrams: connected sockets and others, and the name under which a program sees each answer.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use rustix::net::connect_unspec;
use socket2::{SockAddr, Socket};
use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    checks::{OrPanic as _, STEER},
    loopback,
    published::{
        machine::{BRIDGE_ADDRESS, FIRST, Machine, PORT, SECOND},
        who::who_from,
    },
    servers,
    services::WHO,
    udp,
};

use crate::world::{
    HANG, World, ask, assert_from_first, assert_from_proxy, published, receive, receive_message,
};

/// A port on which a program in Linux serves.
const OTHER_PORT: u16 = 9100;
/// The program's number.
const OTHER: u64 = 77;

/// Connects; its answers come within the usual limit.
#[track_caller]
fn connected(socket: Socket, to: SocketAddr) -> UdpSocket {
    socket.connect(&SockAddr::from(to)).or_panic();
    UdpSocket::from(socket)
}

#[test]
fn a_holders_udp_port_hangs_before_the_load_and_answers_after() {
    let world = World::new(Service::Holder);
    let socket = connected(world.clients.udp().or_panic(), published());
    socket.set_read_timeout(Some(HANG)).or_panic();
    assert_eq!(who_from(&socket), Err(udp::Failure::TimedOut), "without wsl-mirror");
    world.load();

    let socket = connected(world.clients.udp().or_panic(), published());
    assert_from_first(who_from(&socket));
    assert_eq!(socket.peer_addr().or_panic(), published(), "getpeername");
    assert_eq!(socket.local_addr().or_panic().ip(), BRIDGE_ADDRESS, "getsockname");
    // A connected socket is shown the sender as any other.
    let socket = Socket::from(socket);
    for receive in [receive, receive_message] {
        socket.send(WHO).or_panic();
        let (who, from) = receive(&socket).or_panic();
        assert!(Machine::is_from(FIRST, &who), "{who:?}");
        assert_eq!(from, published());
    }
}

#[test]
fn a_socket_that_is_not_connected_sees_the_named_sender() {
    let world = World::new(Service::Holder);
    let socket = world.clients.udp().or_panic();
    socket.set_read_timeout(Some(HANG)).or_panic();
    assert!(ask(&socket, published()).is_err(), "without wsl-mirror");
    world.load();
    let socket = world.clients.udp().or_panic();
    for receive in [receive, receive_message] {
        socket.send_to(WHO, &SockAddr::from(published())).or_panic();
        let (who, from) = receive(&socket).or_panic();
        assert!(Machine::is_from(FIRST, &who), "{who:?}");
        assert_eq!(from, published());
    }
    // 0.0.0.0 is 127.0.0.1, and so the answer's name.
    let (who, from) = ask(&socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))).or_panic();
    assert_eq!((who.number, from), (FIRST.into(), published()));
}

/// The socket of before the load is translated from its next datagram on.
#[test]
fn a_socket_from_before_the_load_is_translated_when_it_sends() {
    let world = World::new(Service::Proxy);
    let (old, bound) = (world.clients.udp().or_panic(), world.clients.udp().or_panic());
    let bound = connected(bound, published());
    let (who, from) = ask(&old, published()).or_panic();
    assert_from_proxy::<()>(Ok(who), "before the load");
    assert_eq!(from, published());
    assert_from_proxy(who_from(&bound), "before the load");
    world.load();
    let (who, from) = ask(&old, published()).or_panic();
    assert_from_first::<()>(Ok(who));
    assert_eq!(from, published());
    // A connected one stays with whom it has.
    assert_from_proxy(who_from(&bound), "connected before the load");
    assert_eq!(bound.peer_addr().or_panic(), published());
}

/// connect(2) again, with `AF_UNSPEC` between and without it.
#[test]
fn a_connected_socket_reconnects_elsewhere() {
    let world = World::loaded(Service::Holder);
    let _other =
        servers::udp(world.lab().guest(), (Ipv4Addr::UNSPECIFIED, OTHER_PORT), Some(OTHER)).or_panic();
    let elsewhere = SocketAddr::V4(loopback(OTHER_PORT));
    let socket = connected(world.clients.udp().or_panic(), published());
    assert_from_first(who_from(&socket));
    connect_unspec(&socket).or_panic();
    socket.connect(elsewhere).or_panic();
    assert_eq!(socket.peer_addr().or_panic(), elsewhere);
    assert_eq!(who_from(&socket).map(|who| who.number), Ok(OTHER));
    connect_unspec(&socket).or_panic();
    socket.connect(published()).or_panic();
    assert_from_first(who_from(&socket));
    // Without AF_UNSPEC the socket keeps its source, as it does without us: another published port is reached from it.
    let _udp = world.publish_udp(8081, 81, 31);
    socket.connect(loopback(8081)).or_panic();
    assert_eq!(who_from(&socket).map(|who| (who.number, *who.client.ip())), Ok((31, BRIDGE_ADDRESS)));
    assert_eq!(socket.peer_addr().or_panic(), SocketAddr::V4(loopback(8081)));
}

/// Without `AF_UNSPEC` the kernel keeps the source that it chose for the first peer. From the bridge's address no program on
/// 127.0.0.1 is reached; from 127.0.0.1 no container, so that way is left alone.
#[test]
fn a_source_that_was_kept_reaches_only_its_own_kind() {
    let world = World::loaded(Service::Proxy);
    let guest = world.lab().guest();
    let _other = servers::udp(guest, (Ipv4Addr::UNSPECIFIED, OTHER_PORT), Some(OTHER)).or_panic();
    let socket = connected(world.clients.udp().or_panic(), published());
    assert_from_first(who_from(&socket));
    socket.connect(loopback(OTHER_PORT)).or_panic();
    assert_eq!(socket.local_addr().or_panic().ip(), BRIDGE_ADDRESS);
    socket.set_read_timeout(Some(HANG)).or_panic();
    assert_eq!(who_from(&socket), Err(udp::Failure::TimedOut));

    let socket = connected(world.clients.udp().or_panic(), loopback(OTHER_PORT).into());
    assert_eq!(who_from(&socket).map(|who| who.number), Ok(OTHER));
    socket.connect(published()).or_panic();
    assert_from_proxy(who_from(&socket), "from 127.0.0.1");
    assert_eq!(socket.peer_addr().or_panic(), published());
}

/// A target that changes counts for the next datagram of a socket that is not connected.
#[test]
fn a_new_target_counts_for_the_next_datagram() {
    let world = World::loaded(Service::Holder);
    let socket = world.clients.udp().or_panic();
    for container in [FIRST, SECOND, FIRST] {
        world.machine.aim(container);
        let (who, from) = ask(&socket, published()).or_panic();
        assert!(Machine::is_from(container, &who), "{who:?}");
        assert_eq!(from, published());
    }
}

/// A program that sends to the container itself sees the container's own name from then on.
#[test]
fn the_containers_own_name_counts_once_it_was_sent_to() {
    let world = World::loaded(Service::Holder);
    let container = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, FIRST), 80));
    let socket = world.clients.udp().or_panic();
    assert_eq!(ask(&socket, published()).or_panic().1, published());
    assert_eq!(ask(&socket, container).or_panic().1, container);
    assert_eq!(ask(&socket, published()).or_panic().1, published(), "by the name that was used last");
    let socket = connected(world.clients.udp().or_panic(), published());
    assert_from_first(who_from(&socket));
    socket.connect(container).or_panic();
    assert_from_first(who_from(&socket));
    assert_eq!(socket.peer_addr().or_panic(), container);
}

/// A socket remembers eight translations. A ninth container is reached as without wsl-mirror.
#[test]
fn a_ninth_container_of_one_socket_goes_the_old_way() {
    let world = World::loaded(Service::Proxy);
    let all: Vec<_> = (0..9_u8)
        .map(|index| {
            let port = 8100 + u16::from(index);
            (port, world.publish_udp(port, 100 + u16::from(index), 40 + u64::from(index)))
        })
        .collect();
    let socket = world.clients.udp().or_panic();
    for round in 0..2 {
        for (index, (port, _)) in all.iter().enumerate() {
            let to = SocketAddr::V4(loopback(*port));
            let (who, from) = ask(&socket, to).or_panic();
            assert_eq!(from, to, "round {round}, {index}");
            let number = if index < 8 { 40 + index as u64 } else { 0 };
            assert_eq!(who.number, number, "round {round}, {index}");
        }
    }
    // Another socket has places of its own.
    assert_eq!(ask(&world.clients.udp().or_panic(), loopback(8108).into()).or_panic().0.number, 48);
}

/// Two names of one container could not be told apart in its answers.
#[test]
fn a_second_name_of_a_container_goes_the_old_way() {
    let world = World::loaded(Service::Proxy);
    let _servers = world.publish_udp(8100, 100, 40);
    let _again = world.publish_udp_again(8101, 100);
    let socket = world.clients.udp().or_panic();
    for (port, number) in [(8100, 40), (8101, 0), (8100, 40)] {
        let to = SocketAddr::V4(loopback(port));
        let (who, from) = ask(&socket, to).or_panic();
        assert_eq!((who.number, from), (number, to));
    }
    assert_eq!(ask(&world.clients.udp().or_panic(), loopback(8101).into()).or_panic().0.number, 40);
}

/// A container whose program does not listen: the port is unreachable at once, as an ICMP error says.
#[test]
fn a_container_without_a_udp_server_refuses_at_once() {
    let world = World::loaded(Service::Holder);
    world.machine.write(wsl_mirror_core::abi::Target { port: 81, ..world.machine.target(FIRST) });
    let socket = connected(world.clients.udp().or_panic(), published());
    assert_eq!(who_from(&socket), Err(udp::Failure::Refused));
}

/// Steering is about Windows' clients; a port of the user's own `default` is translated for Linux' as any other.
#[test]
fn a_steered_default_does_not_keep_linux_clients_away() {
    let world = World::new(Service::Proxy);
    world.machine.load(STEER);
    let (who, from) = ask(&world.clients.udp().or_panic(), published()).or_panic();
    assert_from_first::<()>(Ok(who));
    assert_eq!(from, published());
    assert_from_first(world.who(PORT));
}
