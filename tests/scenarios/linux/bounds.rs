//! Bounds: memory for what a socket remembers, and ports for many short connections.

use std::{
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};
use wsl_mirror_core::abi::{Service, Target};
use wsl_mirror_lab::{
    checks::OrPanic as _,
    loopback, pace,
    published::{
        machine::{FIRST, PORT},
        who::who_over,
    },
    servers,
    services::TcpService,
    tcp,
};

use crate::world::{World, ask, assert_from_first, assert_from_proxy, published};

/// A socket without room for the translation is not translated: its answers could not be shown under the named address.
#[test]
fn a_socket_without_memory_goes_the_old_way() {
    let world = World::loaded(Service::Proxy);
    let guest = world.lab().guest();
    let name = "net/core/optmem_max";
    if let Err(error) = guest.set_sysctls([(name, "64")]) {
        return println!("skipped: this kernel has no optmem_max of a network namespace: {error:#}");
    }
    let mut stream = world.clients.connect(loopback(PORT)).or_panic();
    assert_eq!(stream.peer_addr().or_panic(), published());
    assert_from_proxy(who_over(&mut stream), "TCP");
    let (who, from) = ask(&world.clients.udp().or_panic(), published()).or_panic();
    assert_from_proxy::<()>(Ok(who), "UDP");
    assert_eq!(from, published());
    guest.set_sysctls([(name, "131072")]).or_panic();
    assert_from_first(world.who(PORT));
}

/// A published port of a service that closes each connection at once.
#[track_caller]
fn closing_service(world: &World) -> servers::Server {
    let service = TcpService::Source { bytes: 1 };
    let server = servers::tcp(world.machine.container(), (Ipv4Addr::UNSPECIFIED, 81), service).or_panic();
    world.machine.write(Target { port: 81, ..world.machine.target(FIRST) });
    server
}

#[track_caller]
fn sockets(world: &World, count: usize) -> Vec<Socket> {
    world.clients.sockets(Domain::IPV4, Type::STREAM, None, count).or_panic()
}

/// Servers mostly close first. Then no port of the client's is left waiting: more connections than there are ports.
#[test]
fn five_thousand_connections_that_the_server_closes_succeed() {
    let world = World::loaded(Service::Holder);
    let _server = closing_service(&world);
    let (rounds, started) = (pace::rounds(50), Instant::now());
    for round in 0..rounds {
        for socket in sockets(&world, 100) {
            socket
                .connect_timeout(&SockAddr::from(published()), tcp::limit())
                .unwrap_or_else(|error| panic!("in round {round}: {error}"));
            socket.set_read_timeout(Some(tcp::limit())).or_panic();
            let mut stream = TcpStream::from(socket);
            assert_eq!(stream.read_to_end(&mut Vec::new()).or_panic(), 1, "in round {round}");
        }
    }
    println!("{} connections in {:?}, one after the other", rounds * 100, started.elapsed());
}

/// The size of `ip_local_port_range`.
const PORTS: usize = 32;

/// A client that closes first leaves its port in `TIME_WAIT` for a minute, for this container's port. Each container's port
/// takes as many such connections a minute as `ip_local_port_range` has ports; `tcp_tw_reuse=1` lifts that.
#[test]
fn clients_that_close_first_run_out_of_ports_and_reuse_lifts_it() {
    let world = World::loaded(Service::Holder);
    let guest = world.lab().guest();
    guest
        .set_sysctls([("net/ipv4/ip_local_port_range", "45000 45031"), ("net/ipv4/tcp_tw_reuse", "2")])
        .or_panic();
    let close_first = |socket: Socket| -> Result<(), ErrorKind> {
        socket.connect_timeout(&SockAddr::from(published()), tcp::limit()).map_err(|error| error.kind())?;
        let mut stream = TcpStream::from(socket);
        stream.shutdown(std::net::Shutdown::Write).or_panic();
        // The service closes in turn.
        stream.set_read_timeout(Some(tcp::limit())).or_panic();
        assert_eq!(stream.read(&mut [0]).or_panic(), 0);
        Ok(())
    };
    let results: Vec<_> = sockets(&world, PORTS + 1).into_iter().map(close_first).collect();
    assert_eq!(results[..PORTS], [Ok(()); PORTS]);
    assert_eq!(results[PORTS], Err(ErrorKind::AddrNotAvailable));
    // Another container's port has ports of its own.
    let _other = servers::tcp(
        world.machine.container(),
        (Ipv4Addr::UNSPECIFIED, 81),
        TcpService::Named { number: FIRST.into() },
    )
    .or_panic();
    world.machine.write(Target { port: 81, ..world.machine.target(FIRST) });
    assert_from_first(world.who(PORT));

    world.machine.aim(FIRST);
    guest.set_sysctls([("net/ipv4/tcp_tw_reuse", "1")]).or_panic();
    // A port may be used again when its last timestamp is a second old.
    thread::sleep(Duration::from_millis(2100));
    let results: Vec<_> = sockets(&world, PORTS).into_iter().map(close_first).collect();
    assert_eq!(results, [Ok(()); PORTS]);
}

/// Sockets that connect elsewhere and are closed leave nothing behind: as many as a soak likes.
#[test]
fn a_socket_takes_its_memory_with_it() {
    let world = World::loaded(Service::Holder);
    let to: SocketAddr = published();
    for _ in 0..pace::rounds(20) {
        for socket in world.clients.sockets(Domain::IPV4, Type::DGRAM, None, 200).or_panic() {
            socket.connect(&SockAddr::from(to)).or_panic();
            assert_eq!(socket.peer_addr().or_panic().as_socket(), Some(to));
        }
    }
}
