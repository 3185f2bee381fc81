//! What is left alone: it goes the way that it goes without wsl-mirror.
//!
//! A stand-in for docker-proxy holds the published port here: it answers clients that are not translated.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
};

use socket2::{SockAddr, Socket};
use wsl_mirror_core::abi::{Service, Target};
use wsl_mirror_lab::{
    BRIDGE, LAN_ADDRESS, NEIGHBOUR_ADDRESS,
    checks::{OrPanic as _, ok},
    clients::{Clients, connect},
    loopback,
    published::{
        machine::{BRIDGE_ADDRESS, FIRST, Machine, PORT},
        who::{Who, who, who_from, who_over},
    },
    servers, targets, tcp, udp,
};

use crate::world::{
    HANG, World, ask, assert_from_first, assert_from_proxy, linux_program, published, receive, who_at,
};

/// A port on which another program serves.
const OTHER_PORT: u16 = 9100;
/// A port of the block that Windows has leased to the guest, which no test's client gets by chance.
const OWN_PORT: u16 = 48_700;

/// Who answers a TCP and a UDP client that were set up by `prepare`. Both see the address that they named.
#[track_caller]
fn answers(world: &World, prepare: impl Fn(&Socket)) -> [Who; 2] {
    let socket = world.clients.tcp().or_panic();
    prepare(&socket);
    let mut stream = connect(socket, loopback(PORT)).or_panic();
    let by_tcp = who_over(&mut stream).or_panic();
    assert_eq!(stream.peer_addr().or_panic(), published(), "getpeername");
    let socket = world.clients.udp().or_panic();
    prepare(&socket);
    let (by_udp, from) = ask(&socket, published()).or_panic();
    assert_eq!(from, published(), "recvfrom");
    let socket = world.clients.udp().or_panic();
    prepare_connected(&socket, &prepare);
    let connected = UdpSocket::from(socket);
    let who = who_from(&connected).or_panic();
    assert_eq!(who.number, by_udp.number, "a connected socket");
    [by_tcp, by_udp]
}

#[track_caller]
fn prepare_connected(socket: &Socket, prepare: &impl Fn(&Socket)) {
    socket.set_reuse_address(true).or_panic();
    prepare(socket);
    socket.connect(&SockAddr::from(published())).or_panic();
}

#[track_caller]
fn assert_left_alone(world: &World, when: &str, prepare: impl Fn(&Socket)) {
    for who in answers(world, prepare) {
        assert_from_proxy::<()>(Ok(who), when);
    }
}

/// From 127.0.0.1 no container is reached.
#[test]
fn a_client_bound_to_localhost_is_left_alone() {
    let world = World::loaded(Service::Proxy);
    assert_left_alone(&world, "127.0.0.1", |socket| {
        socket.bind(&SockAddr::from(loopback(0))).or_panic();
    });
    assert_left_alone(&world, "127.0.0.1 and a port", |socket| {
        socket.set_reuse_address(true).or_panic();
        socket.bind(&SockAddr::from(loopback(OWN_PORT))).or_panic();
    });
}

/// A port alone says nothing about the address: the client keeps the port.
#[test]
fn a_client_bound_to_a_port_is_translated_and_keeps_it() {
    let world = World::loaded(Service::Proxy);
    let bind = |socket: &Socket| {
        socket.set_reuse_address(true).or_panic();
        socket.bind(&SockAddr::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, OWN_PORT))).or_panic();
    };
    for who in answers(&world, bind) {
        assert_from_first::<()>(Ok(who));
        assert_eq!(who.client, SocketAddrV4::new(BRIDGE_ADDRESS, OWN_PORT));
    }
}

/// The device that leads to the container is no exception: what the program has chosen counts.
#[test]
fn a_client_bound_to_a_device_is_left_alone() {
    let world = World::new(Service::Proxy);
    let reaches = |device: &str| {
        let socket = world.clients.tcp().or_panic();
        socket.bind_device(Some(device.as_bytes())).or_panic();
        let by_tcp = socket.connect_timeout(&SockAddr::from(published()), HANG).is_ok();
        let socket = world.clients.udp().or_panic();
        socket.bind_device(Some(device.as_bytes())).or_panic();
        socket.set_read_timeout(Some(HANG)).or_panic();
        (by_tcp, ask(&socket, published()).is_ok())
    };
    let devices = ["lo", BRIDGE];
    let before = devices.map(reaches);
    world.load();
    assert_eq!(devices.map(reaches), before);
    assert_eq!(before[1], (false, false), "a translated client would reach the container by {BRIDGE}");
}

/// A mark chooses a route by rules of its program's.
#[test]
fn a_client_with_a_mark_is_left_alone() {
    let world = World::loaded(Service::Proxy);
    assert_left_alone(&world, "SO_MARK", |socket| socket.set_mark(0x10).or_panic());
    for who in answers(&world, |socket| socket.set_mark(0).or_panic()) {
        assert_from_first::<()>(Ok(who));
    }
}

/// `IP_PKTINFO` chooses the source of one datagram.
#[test]
fn a_datagram_that_names_localhost_as_its_source_is_left_alone() {
    let world = World::loaded(Service::Proxy);
    let socket = world.clients.udp().or_panic();
    send_from(&socket, Ipv4Addr::LOCALHOST);
    let (who, from) = receive(&socket).or_panic();
    assert_from_proxy::<()>(Ok(who), "IP_PKTINFO");
    assert_eq!(from, published());
    // The same without a source of its own.
    send_from(&socket, Ipv4Addr::UNSPECIFIED);
    let (who, from) = receive(&socket).or_panic();
    assert_from_first::<()>(Ok(who));
    assert_eq!(from, published());
}

/// A control message: the kernel aligns the value as the header.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    info: libc::in_pktinfo,
}

/// sendmsg(2) with `IP_PKTINFO`.
#[track_caller]
fn send_from(socket: &Socket, source: Ipv4Addr) {
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let to = SockAddr::from(published());
    let mut part = libc::iovec {
        iov_base: wsl_mirror_lab::services::WHO.as_ptr().cast_mut().cast(),
        iov_len: wsl_mirror_lab::services::WHO.len(),
    };
    let mut control = Control {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>(),
            cmsg_level: libc::IPPROTO_IP,
            cmsg_type: libc::IP_PKTINFO,
        },
        info,
    };
    // SAFETY: all zeros is a value of it.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message and all that it names are alive.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    assert_eq!(usize::try_from(sent).ok(), Some(part.iov_len), "{}", std::io::Error::last_os_error());
}

#[test]
fn ports_that_the_user_keeps_are_left_alone() {
    let world = World::new(Service::Proxy);
    for configuration in [
        "exempt = [\"8080\"]\n",
        "[ports]\n8080 = { policy = \"pass\" }\n",
        "[ports]\n8080 = { policy = \"steer\" }\n",
        "path = \"proxy\"\n",
        "[ports]\n8080 = { path = \"proxy\" }\n",
        "path = \"direct\"\n[ports]\n8080 = { path = \"proxy\" }\n",
        "linux_clients = \"off\"\n",
    ] {
        world.machine.load(configuration);
        assert_left_alone(&world, configuration, |_| {});
    }
    for configuration in [
        "",
        "path = \"direct\"\n",
        "path = \"proxy\"\n[ports]\n8080 = { path = \"auto\" }\n",
        "path = \"proxy\"\n[ports]\n8080 = { path = \"direct\" }\n",
        "path = \"proxy\"\n[ports]\n8080 = { policy = \"direct\" }\n",
        "exempt = [\"8081\"]\n",
        "linux_clients = \"auto\"\n",
    ] {
        world.machine.load(configuration);
        for who in answers(&world, |_| {}) {
            assert_from_first::<()>(Ok(who));
        }
    }
    for (arguments, is_translated) in [
        (["policy", "set", "8080", "steer"].as_slice(), false),
        (&["policy", "set", "8080", "direct"], true),
        (&["policy", "unset", "8080"], true),
        (&["exempt", "add", "8080"], false),
        (&["exempt", "del", "8080"], true),
    ] {
        ok(world.lab(), arguments);
        if is_translated {
            assert_from_first(world.who(PORT));
        } else {
            assert_left_alone(&world, &arguments.join(" "), |_| {});
        }
    }
}

/// A firewall rule of the user's closes the port to Linux' clients, or would drop what a translated one sends.
#[test]
fn a_port_that_is_closed_to_linux_is_left_alone() {
    let world = World::loaded(Service::Proxy);
    let target = world.machine.target(FIRST);
    world.machine.write(Target { flags: Target::CLOSED_TO_LINUX, ..target });
    assert_left_alone(&world, "closed", |_| {});
    // A raw drop of Windows' packets is nothing to Linux' clients.
    world.machine.write(Target { flags: Target::DROPPED, ..target });
    assert_from_first(world.who(PORT));
    // A listener that leads to no container, as with rootless engines.
    world.machine.forget_targets();
    assert_left_alone(&world, "no target", |_| {});
}

/// A process in a container is in another network namespace: its 127.0.0.1 is its own.
#[test]
fn a_client_in_a_container_is_left_alone() {
    let world = World::loaded(Service::Proxy);
    let container = Clients::in_namespace(world.lab(), world.machine.container()).or_panic();
    assert_eq!(who_at(&container, loopback(PORT)), Err(tcp::Failure::Refused));
    let own = who_at(&container, loopback(80)).or_panic();
    assert_eq!((own.number, *own.client.ip()), (FIRST.into(), Ipv4Addr::LOCALHOST));
    // The port as the container's network has it: through docker-proxy, as without us.
    assert_from_proxy(who_at(&container, (BRIDGE_ADDRESS, PORT)), "from the container's network");
    let socket = container.udp().or_panic();
    let to = SocketAddr::from((BRIDGE_ADDRESS, PORT));
    let (who, from) = ask(&socket, to).or_panic();
    assert_from_proxy::<()>(Ok(who), "from the container's network");
    assert_eq!(from, to);
}

/// `load --cgroup`, or another distribution's cgroup namespace: the hooks never see clients outside of it.
#[test]
fn a_client_outside_of_the_cgroup_is_left_alone() {
    let world = World::loaded(Service::Proxy);
    let guest = world.lab().guest();
    assert_from_proxy(who(&tcp::Client::new(guest, loopback(PORT))), "outside");
    let socket = udp::Client::new(guest, loopback(PORT)).connect().or_panic();
    assert_from_proxy(who_from(&socket), "outside");
    // Any cgroup below is inside.
    let below = Clients::in_group(world.lab(), guest, "clients/below").or_panic();
    assert_from_first(who_at(&below, loopback(PORT)));
}

/// A wildcard listener is found for any address: those of others are not looked up.
#[test]
fn a_remote_address_on_a_published_port_is_left_alone() {
    let world = World::loaded(Service::Proxy);
    let neighbour = world.lab().add_neighbour().or_panic();
    let _service = linux_program_in(&neighbour, 34);
    let to = SocketAddrV4::new(NEIGHBOUR_ADDRESS, PORT);
    assert_eq!(world.who_at(to).map(|who| who.number), Ok(34));
    // Nor is a remote one's that nobody has: the kernel says what it says without us.
    assert_eq!(world.machine.target(FIRST).port, 80);
    // The machine's own address outside of 127.0.0.0/8, of which the agent has not said that Linux cannot reach it.
    assert_from_proxy(world.who_at((BRIDGE_ADDRESS, PORT)), "an address of this machine");
    assert_from_proxy(world.who_at((LAN_ADDRESS, PORT)), "the LAN address");
}

fn linux_program_in(namespace: &wsl_mirror_lab::Namespace, number: u64) -> servers::Server {
    let service = wsl_mirror_lab::services::TcpService::Named { number };
    servers::tcp(namespace, (Ipv4Addr::UNSPECIFIED, PORT), service).or_panic()
}

/// Ports that nobody serves in Linux, and those of programs in Linux without a container.
#[test]
fn other_ports_are_reached_as_before() {
    let world = World::new(Service::Proxy);
    let lab = world.lab();
    let linux = linux_program(lab, (Ipv4Addr::UNSPECIFIED, OTHER_PORT), 77);
    let _windows = linux_program_on_windows(&world);
    let look = |when: &str| {
        assert_eq!(world.who(OTHER_PORT).map(|who| who.number), Ok(77), "{when}: Linux");
        assert_eq!(world.who(9200).map(|who| who.number), Ok(78), "{when}: Windows");
        assert_eq!(world.who(9300), Err(tcp::Failure::Refused), "{when}: nobody");
    };
    look("without wsl-mirror");
    world.load();
    look("with it");
    assert!(targets::read(lab.guest(), &linux).or_panic().is_none());
    assert_from_first(world.who(PORT));
    assert!(Machine::is_from(FIRST, &world.who(PORT).or_panic()));
}

#[track_caller]
fn linux_program_on_windows(world: &World) -> servers::Server {
    let service = wsl_mirror_lab::services::TcpService::Named { number: 78 };
    servers::tcp(world.lab().windows(), loopback(9200), service).or_panic()
}
