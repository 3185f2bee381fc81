//! One UDP socket that talks to everybody in turn.

use std::net::{Ipv4Addr, SocketAddr};

use wsl_mirror_core::abi::Service;
use wsl_mirror_lab::{
    NEIGHBOUR_ADDRESS,
    checks::OrPanic as _,
    loopback,
    published::machine::{FIRST, PORT},
    servers,
};

use crate::world::{World, ask, published, receive_message};

/// Two containers, a program in Linux, one in Windows, and a neighbour on the LAN: each answer under its own name.
#[test]
fn each_answer_on_one_socket_has_its_own_name() {
    let world = World::loaded(Service::Holder);
    let lab = world.lab();
    let _container = world.publish_udp(8081, 81, 31);
    let _linux = servers::udp(lab.guest(), (Ipv4Addr::UNSPECIFIED, 9100), Some(32)).or_panic();
    let _windows = servers::udp(lab.windows(), loopback(9200), Some(33)).or_panic();
    let neighbour = lab.add_neighbour().or_panic();
    let _lan = servers::udp(&neighbour, (NEIGHBOUR_ADDRESS, 9300), Some(34)).or_panic();
    let all: [(SocketAddr, u64); 5] = [
        (published(), FIRST.into()),
        (loopback(8081).into(), 31),
        (loopback(9100).into(), 32),
        (loopback(9200).into(), 33),
        ((NEIGHBOUR_ADDRESS, 9300).into(), 34),
    ];
    let socket = world.clients.udp().or_panic();
    for round in 0..3 {
        for (to, number) in all {
            let (who, from) = ask(&socket, to).unwrap_or_else(|error| panic!("round {round}, {to}: {error}"));
            assert_eq!((who.number, from), (number, to), "round {round}");
        }
    }
    // All at once: answers are told apart by their names alone.
    for (to, _) in all {
        socket.send_to(wsl_mirror_lab::services::WHO, &socket2::SockAddr::from(to)).or_panic();
    }
    let mut names: Vec<_> = all
        .iter()
        .map(|_| {
            let (who, from) = receive_message(&socket).or_panic();
            (from, who.number)
        })
        .collect();
    names.sort_unstable();
    let mut expected = all.to_vec();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(PORT, published().port());
}

/// A neighbour that serves the very port which a container has here: its address is not this machine's.
#[test]
fn a_remote_address_on_a_published_port_is_never_touched() {
    let world = World::loaded(Service::Holder);
    let neighbour = world.lab().add_neighbour().or_panic();
    let _services = wsl_mirror_lab::published::machine::named(&neighbour, PORT, 34);
    let to = SocketAddr::from((NEIGHBOUR_ADDRESS, PORT));
    let mut stream = world.clients.connect((NEIGHBOUR_ADDRESS, PORT)).or_panic();
    assert_eq!(wsl_mirror_lab::published::who::who_over(&mut stream).or_panic().number, 34);
    assert_eq!(stream.peer_addr().or_panic(), to);
    let socket = world.clients.udp().or_panic();
    // Once the same socket has been to the container, too.
    for (to, number) in [(to, 34), (published(), u64::from(FIRST)), (to, 34)] {
        let (who, from) = ask(&socket, to).or_panic();
        assert_eq!((who.number, from), (number, to));
    }
}
