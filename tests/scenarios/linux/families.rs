//! Sockets of IPv6 that talk IPv4, as those of Java and .NET do; and `::1`, which is never touched.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};

use socket2::{Domain, SockAddr, Socket, Type};
use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    checks::OrPanic as _,
    published::{
        machine::{FIRST, IN_CONTAINER, Machine, PORT},
        who::{who_from, who_over},
    },
    servers, targets, tcp, udp,
};

use crate::world::{
    HANG, World, ask, assert_container_over, assert_from_first, assert_from_proxy, published, receive_message,
};

/// The address as an IPv6 socket has it.
fn mapped(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddrV6::new(address.to_ipv6_mapped(), port, 0, 0).into()
}

/// A socket of both families.
#[track_caller]
fn dual_stack(world: &World, kind: Type) -> Socket {
    let socket = world.clients.socket(Domain::IPV6, kind, None).or_panic();
    socket.set_only_v6(false).or_panic();
    socket.set_read_timeout(Some(tcp::limit())).or_panic();
    socket
}

#[track_caller]
fn connect(socket: Socket, to: SocketAddr) -> TcpStream {
    socket.connect_timeout(&SockAddr::from(to), tcp::limit()).or_panic();
    socket.into()
}

#[test]
fn a_dual_stack_client_is_connected_to_the_container() {
    let world = World::new(Service::Holder);
    let socket = dual_stack(&world, Type::STREAM);
    let connected = socket.connect_timeout(&SockAddr::from(mapped(Ipv4Addr::LOCALHOST, PORT)), HANG);
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(HANG)).or_panic();
    assert!(connected.is_err() || who_over(&mut stream).is_err(), "without wsl-mirror");
    world.load();
    for named in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::UNSPECIFIED] {
        let mut stream = connect(dual_stack(&world, Type::STREAM), mapped(named, PORT));
        let shown = if named.is_unspecified() { Ipv4Addr::LOCALHOST } else { named };
        assert_container_over(&mut stream, mapped(shown, PORT));
    }
}

#[test]
fn a_dual_stack_socket_sees_the_mapped_name_of_each_answer() {
    let world = World::new(Service::Holder);
    let named = mapped(Ipv4Addr::LOCALHOST, PORT);
    let socket = dual_stack(&world, Type::DGRAM);
    socket.set_read_timeout(Some(HANG)).or_panic();
    assert!(ask(&socket, named).is_err(), "without wsl-mirror");
    world.load();

    let socket = dual_stack(&world, Type::DGRAM);
    for _ in 0..2 {
        let (who, from) = ask(&socket, named).or_panic();
        assert!(Machine::is_from(FIRST, &who), "{who:?}");
        assert_eq!(from, named, "recvfrom");
        socket.send_to(wsl_mirror_lab::services::WHO, &SockAddr::from(named)).or_panic();
        assert_eq!(receive_message(&socket).or_panic().1, named, "recvmsg");
    }
    let container = mapped(Ipv4Addr::new(172, 30, 0, FIRST), IN_CONTAINER);
    assert_eq!(ask(&socket, container).or_panic().1, container);

    let socket = dual_stack(&world, Type::DGRAM);
    socket.connect(&SockAddr::from(named)).or_panic();
    let socket = UdpSocket::from(socket);
    for _ in 0..2 {
        assert_from_first(who_from(&socket));
        assert_eq!(socket.peer_addr().or_panic(), named, "getpeername");
    }
    let socket = Socket::from(socket);
    socket.send(wsl_mirror_lab::services::WHO).or_panic();
    assert_eq!(receive_message(&socket).or_panic().1, named, "recvmsg");
}

/// The kernel sends such a socket's datagrams as if each named its destination (`udpv6_sendmsg`).
#[test]
fn a_connected_dual_stack_socket_from_before_the_load_goes_on() {
    let world = World::new(Service::Proxy);
    let named = mapped(Ipv4Addr::LOCALHOST, PORT);
    let socket = dual_stack(&world, Type::DGRAM);
    socket.connect(&SockAddr::from(named)).or_panic();
    let socket = UdpSocket::from(socket);
    assert_from_proxy(who_from(&socket), "before the load");
    world.load();
    assert_from_proxy(who_from(&socket), "after the load");
    assert_eq!(socket.peer_addr().or_panic(), named);
}

/// Bound to `::ffff:127.0.0.1`: as one of IPv4 bound to 127.0.0.1.
#[test]
fn a_dual_stack_client_bound_to_localhost_is_left_alone() {
    let world = World::loaded(Service::Proxy);
    let named = mapped(Ipv4Addr::LOCALHOST, PORT);
    let bound = SockAddr::from(mapped(Ipv4Addr::LOCALHOST, 0));
    let socket = dual_stack(&world, Type::STREAM);
    socket.bind(&bound).or_panic();
    let mut stream = connect(socket, named);
    assert_from_proxy(who_over(&mut stream), "TCP");
    assert_eq!(stream.peer_addr().or_panic(), named);
    let socket = dual_stack(&world, Type::DGRAM);
    socket.bind(&bound).or_panic();
    let (who, from) = ask(&socket, named).or_panic();
    assert_from_proxy::<()>(Ok(who), "UDP");
    assert_eq!(from, named);
}

/// Docker publishes on `[::]` what is to be reached by IPv4, too: one socket of both families.
#[test]
fn a_dual_stack_listener_is_found_for_ipv4() {
    let world = World::loaded(Service::Holder);
    let guest = world.lab().guest();
    let bind = |kind: Type| {
        let socket = guest.enter(|| Socket::new(Domain::IPV6, kind, None)).or_panic();
        socket.set_only_v6(false).or_panic();
        socket.bind(&SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8081)))).or_panic();
        if kind == Type::STREAM {
            socket.listen(16).or_panic();
        }
        targets::write(guest, &socket, world.machine.target(FIRST)).or_panic();
        socket
    };
    let _listeners = [Type::STREAM, Type::DGRAM].map(bind);
    assert_from_first(world.who(8081));
    let named = SocketAddr::from((Ipv4Addr::LOCALHOST, 8081));
    let (who, from) = ask(&world.clients.udp().or_panic(), named).or_panic();
    assert!(Machine::is_from(FIRST, &who), "{who:?}");
    assert_eq!(from, named);
}

/// Nothing listens on `::1`, and IPv6 is not ours.
#[test]
fn a_client_of_ipv6s_own_loopback_is_never_touched() {
    let world = World::loaded(Service::Holder);
    let guest = world.lab().guest();
    let local = SocketAddr::from((Ipv6Addr::LOCALHOST, PORT));
    let refused = dual_stack(&world, Type::STREAM).connect_timeout(&SockAddr::from(local), tcp::limit());
    assert_eq!(refused.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionRefused));
    let socket = dual_stack(&world, Type::DGRAM);
    socket.connect(&SockAddr::from(local)).or_panic();
    assert_eq!(who_from(&socket.into()), Err(udp::Failure::Refused));

    let listener = guest.enter(|| std::net::TcpListener::bind(local)).or_panic();
    let stream = connect(dual_stack(&world, Type::STREAM), local);
    let (_, from) = listener.accept().or_panic();
    assert_eq!((from, stream.peer_addr().or_panic()), (stream.local_addr().or_panic(), local));
    assert_eq!(published().port(), local.port());
    let unconnected = dual_stack(&world, Type::DGRAM);
    let server = guest.enter(|| UdpSocket::bind(local)).or_panic();
    unconnected.send_to(b"hello", &SockAddr::from(local)).or_panic();
    let (_, from) = server.recv_from(&mut [0; 16]).or_panic();
    server.send_to(b"hello", from).or_panic();
    let mut buffer = Vec::with_capacity(16);
    let (_, from) = unconnected.recv_from(buffer.spare_capacity_mut()).or_panic();
    assert_eq!(from.as_socket(), Some(local));
    // A server of IPv4 beside it is not asked either.
    let ipv4 = servers::tcp_echo(guest, (Ipv4Addr::UNSPECIFIED, 8082)).or_panic();
    targets::write(guest, &ipv4, world.machine.target(FIRST)).or_panic();
    let other = SocketAddr::from((Ipv6Addr::LOCALHOST, 8082));
    let refused = dual_stack(&world, Type::STREAM).connect_timeout(&SockAddr::from(other), tcp::limit());
    assert!(refused.is_err());
}
