//! TCP connections: each way to make one, and which addresses the program is shown.

use std::{
    io::{ErrorKind, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::connect_unspec,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use wsl_mirror_core::abi::{Service, Target};
use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _},
    clients::connect,
    loopback, pace,
    published::{
        machine::{BRIDGE_ADDRESS, FIRST, IN_CONTAINER, Machine, PORT, SECOND, named},
        who::who_over,
    },
    servers, targets, tcp,
};

use crate::world::{
    HANG, World, assert_container_over, assert_from_first, assert_from_proxy, linux_program, published,
    who_at,
};

/// A port on which a program in Linux serves.
const OTHER_PORT: u16 = 9100;
/// The program's number.
const OTHER: u64 = 77;

/// Waits until the connection is made; the error is that of `SO_ERROR`.
#[track_caller]
fn wait_for_connection(socket: &Socket) {
    let limit = Timespec::try_from(tcp::limit()).or_panic();
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    assert_eq!(poll(&mut polled, Some(&limit)).or_panic(), 1, "writable");
    assert!(socket.take_error().or_panic().is_none());
}

/// Docker without its proxy, Podman: the process that holds the port never accepts.
#[test]
fn a_holders_port_hangs_before_the_load_and_answers_after() {
    let world = World::new(Service::Holder);
    assert!(world.who(PORT).is_err(), "without wsl-mirror");
    world.load();
    let mut stream = world.clients.connect(loopback(PORT)).or_panic();
    assert_container_over(&mut stream, published());
    // getsockname(2) shows the machine's address on the container's network.
    assert_eq!(stream.local_addr().or_panic().ip(), BRIDGE_ADDRESS);
}

#[test]
fn a_proxys_port_is_answered_by_the_container_itself() {
    let world = World::new(Service::Proxy);
    assert_from_proxy(world.who(PORT), "without wsl-mirror");
    world.load();
    assert_from_first(world.who(PORT));
}

#[test]
fn a_non_blocking_connect_is_in_progress_and_then_writable() {
    let world = World::loaded(Service::Holder);
    let socket = world.clients.tcp().or_panic();
    socket.set_nonblocking(true).or_panic();
    match socket.connect(&SockAddr::from(published())) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}"),
    }
    wait_for_connection(&socket);
    socket.set_nonblocking(false).or_panic();
    assert_container_over(&mut socket.into(), published());
}

/// A SYN with data, once the client has a cookie: by sendto(2) with `MSG_FASTOPEN`, and by `TCP_FASTOPEN_CONNECT`.
#[test]
fn a_fast_open_sends_its_data_to_the_container() {
    let world = World::loaded(Service::Holder);
    // The container's listeners take data in SYNs without asking for it (0x400).
    world.machine.container().set_sysctls([("net/ipv4/tcp_fastopen", "1027")]).or_panic();
    let _services = named(world.machine.container(), 81, FIRST.into());
    world.lab().guest().set_sysctls([("net/ipv4/tcp_fastopen", "1")]).or_panic();
    world.machine.write(Target { port: 81, ..world.machine.target(FIRST) });
    let by_send = || {
        let socket = world.clients.tcp().or_panic();
        socket.set_read_timeout(Some(tcp::limit())).or_panic();
        let sent = socket.send_to_with_flags(
            wsl_mirror_lab::services::WHO,
            &SockAddr::from(published()),
            libc::MSG_FASTOPEN,
        );
        sent.or_panic();
        TcpStream::from(socket)
    };
    let by_connect = || {
        let socket = world.clients.tcp().or_panic();
        let one: libc::c_int = 1;
        // SAFETY: the pointer and the length are the number's.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_FASTOPEN_CONNECT,
                (&raw const one).cast(),
                libc::socklen_t::try_from(size_of_val(&one)).or_panic(),
            )
        };
        assert_eq!(set, 0, "TCP_FASTOPEN_CONNECT");
        let mut stream = connect(socket, loopback(PORT)).or_panic();
        stream.write_all(wsl_mirror_lab::services::WHO).or_panic();
        stream
    };
    let ways: [(&str, &dyn Fn() -> TcpStream); 2] =
        [("MSG_FASTOPEN", &by_send), ("TCP_FASTOPEN_CONNECT", &by_connect)];
    for (way, client) in ways {
        // The first one of all fetches the cookie.
        for _ in 0..2 {
            let mut stream = client();
            let answer = String::from_utf8(tcp::read_line(&mut stream).or_panic()).or_panic();
            assert!(answer.starts_with(&format!("{FIRST} {BRIDGE_ADDRESS}:")), "{way}: {answer}");
            assert_eq!(stream.peer_addr().or_panic(), published(), "{way}: getpeername");
            let _ = connect_unspec(&stream);
        }
        let mut stream = client();
        tcp::read_line(&mut stream).or_panic();
        assert!(has_sent_data_in_its_syn(&stream), "{way}");
    }
}

/// `TCPI_OPT_SYN_DATA`: the server has acknowledged data in the SYN.
fn has_sent_data_in_its_syn(stream: &TcpStream) -> bool {
    let mut info = [0_u8; 104];
    let mut length = libc::socklen_t::try_from(info.len()).or_panic();
    // SAFETY: the pointers are to live values, and the length is the buffer's.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "TCP_INFO");
    // `tcpi_options` is the sixth byte.
    info[5] & 32 != 0
}

#[test]
fn an_mptcp_client_is_connected_to_the_container() {
    let world = World::loaded(Service::Holder);
    let socket = match world.clients.socket(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
        Ok(socket) => socket,
        Err(error) => return println!("skipped: this kernel makes no MPTCP socket: {error:#}"),
    };
    let mut stream = connect(socket, loopback(PORT)).or_panic();
    assert_container_over(&mut stream, published());
}

/// The lookup meets the subflow of an MPTCP listener, and the target is on the MPTCP socket: as without us.
#[test]
fn clients_of_an_mptcp_listener_reach_the_listener() {
    let world = World::loaded(Service::Proxy);
    let guest = world.lab().guest();
    let listener = guest.enter(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return println!("skipped: this kernel makes no MPTCP socket: {error}"),
    };
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, OTHER_PORT);
    listener.bind(&SockAddr::from(address)).or_panic();
    listener.listen(16).or_panic();
    listener.set_read_timeout(Some(tcp::limit())).or_panic();
    if let Err(error) = targets::write(guest, &listener, world.machine.target(FIRST)) {
        println!("the kernel keeps no target on an MPTCP socket: {error:#}");
    }
    let stream = world.clients.connect(loopback(OTHER_PORT)).or_panic();
    let (_, from) = listener.accept().or_panic();
    let from = from.as_socket_ipv4();
    assert_eq!(from.map(SocketAddr::V4), Some(stream.local_addr().or_panic()));
    assert_eq!(from.map(|from| *from.ip()), Some(Ipv4Addr::LOCALHOST));
}

/// `AF_UNSPEC` ends a connection, and the socket may make another one: to a container, to a program in Linux, to a container.
#[test]
fn a_socket_reconnects_elsewhere_and_back() {
    let world = World::loaded(Service::Holder);
    let _other = linux_program(world.lab(), (Ipv4Addr::UNSPECIFIED, OTHER_PORT), OTHER);
    let socket = world.clients.tcp().or_panic();
    socket.set_read_timeout(Some(tcp::limit())).or_panic();
    for (to, number) in [(PORT, u64::from(FIRST)), (OTHER_PORT, OTHER), (PORT, u64::from(FIRST))] {
        socket.connect(&SockAddr::from(loopback(to))).or_panic();
        let mut stream = TcpStream::from(socket.try_clone().or_panic());
        assert_eq!(stream.peer_addr().or_panic(), SocketAddr::V4(loopback(to)));
        assert_eq!(who_over(&mut stream).or_panic().number, number, "port {to}");
        // Without AF_UNSPEC a connected socket connects nowhere.
        let again = socket.connect(&SockAddr::from(loopback(OTHER_PORT)));
        assert_eq!(again.map_err(|error| error.raw_os_error()), Err(Some(libc::EISCONN)));
        assert_eq!(stream.peer_addr().or_panic(), SocketAddr::V4(loopback(to)), "after a failed connect");
        connect_unspec(&stream).or_panic();
        assert_eq!(stream.peer_addr().map_err(|error| error.kind()), Err(ErrorKind::NotConnected));
    }
}

/// A container whose program does not listen refuses; the same socket connects once the program does.
#[test]
fn a_container_that_does_not_listen_refuses_at_once() {
    let world = World::loaded(Service::Holder);
    world.machine.write(Target { port: 81, ..world.machine.target(FIRST) });
    let started = Instant::now();
    assert_eq!(world.who(PORT), Err(tcp::Failure::Refused));
    assert!(started.elapsed() < pace::limit(Duration::from_millis(500)), "{:?}", started.elapsed());
    world.machine.aim(FIRST);
    assert_from_first(world.who(PORT));
}

/// A stopped program's backlog accepts as the kernel does, without us too: nothing answers until it goes on.
#[test]
fn a_paused_container_accepts_and_does_not_answer() {
    let world = World::loaded(Service::Holder);
    let paused = servers::tcp_holder(world.machine.container(), (Ipv4Addr::UNSPECIFIED, 81)).or_panic();
    world.machine.write(Target { port: 81, ..world.machine.target(FIRST) });
    let mut stream = world.clients.connect(loopback(PORT)).or_panic();
    stream.set_read_timeout(Some(Duration::from_millis(100))).or_panic();
    assert!(matches!(who_over(&mut stream), Err(tcp::Failure::Stalled { .. })));
    drop(paused);
}

/// A container that is started again may have another address: then its listener has another target.
#[test]
fn a_new_target_counts_for_the_next_connection() {
    let world = World::loaded(Service::Holder);
    let mut old = world.clients.connect(loopback(PORT)).or_panic();
    world.machine.aim(SECOND);
    let new = world.who(PORT);
    assert!(new.as_ref().is_ok_and(|who| Machine::is_from(SECOND, who)), "{new:?}");
    assert_container_over(&mut old, published());
}

#[test]
fn a_connection_from_before_the_load_goes_on_unchanged() {
    let world = World::new(Service::Proxy);
    let mut old = world.clients.connect(loopback(PORT)).or_panic();
    assert_from_proxy(who_over(&mut old), "before the load");
    let own = old.local_addr().or_panic();
    world.load();
    assert_from_proxy(who_over(&mut old), "after the load");
    assert_eq!((old.local_addr().or_panic(), old.peer_addr().or_panic()), (own, published()));
    let mut translated = world.clients.connect(loopback(PORT)).or_panic();
    world.lab().wsl_mirror(&["unload"]).or_panic().success().or_panic();
    // The hook that shows the named address is gone; the connection is not.
    assert_from_first(who_over(&mut translated));
    let container = SocketAddr::from((Ipv4Addr::new(172, 30, 0, FIRST), IN_CONTAINER));
    assert_eq!(translated.peer_addr().or_panic(), container);
}

/// All of 127.0.0.0/8 is this machine, and 0.0.0.0 is 127.0.0.1, as getpeername(2) shows it without us too.
#[test]
fn other_names_of_this_machine_are_translated() {
    let world = World::loaded(Service::Holder);
    for address in [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 255, 1, 9), Ipv4Addr::UNSPECIFIED] {
        let to = SocketAddrV4::new(address, PORT);
        let mut stream = world.clients.connect(to).or_panic();
        let shown = if address.is_unspecified() { loopback(PORT) } else { to };
        assert_container_over(&mut stream, SocketAddr::V4(shown));
    }
}

/// A listener on 127.0.0.2 alone is not that of 127.0.0.1.
#[test]
fn a_port_is_looked_up_under_the_address_that_was_named() {
    let world = World::loaded(Service::Proxy);
    let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), OTHER_PORT);
    let server = linux_program(world.lab(), address, OTHER);
    targets::write(world.lab().guest(), &server, world.machine.target(FIRST)).or_panic();
    assert_from_first(who_at(&world.clients, address));
    // The kernel's refusal goes to 127.0.0.1, and so to Windows.
    let socket = world.clients.tcp().or_panic();
    let other = SockAddr::from(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 3), OTHER_PORT));
    assert!(socket.connect_timeout(&other, HANG).is_err());
}

/// Bytes in both directions at once, more than any buffer holds.
#[test]
fn a_megabyte_passes_both_ways() {
    let world = World::loaded(Service::Holder);
    let mut stream = world.clients.connect(loopback(PORT)).or_panic();
    assert_eq!(tcp::exchange(&mut stream, HELLO), Ok(HELLO.to_vec()));
    let request: Vec<u8> = (0..1 << 20).map(|index: u32| index.to_le_bytes()[1]).collect();
    let mut sender = stream.try_clone().or_panic();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.write_all(&request).or_panic());
        let mut reply = vec![0; request.len()];
        std::io::Read::read_exact(&mut stream, &mut reply).or_panic();
        assert!(reply == request);
    });
}
