//! A network made anew (`mirrored-mode.md`): another block, index, gateway and address; binds are forgotten.

use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Service, Transport,
    checks::{HELLO, ifindex, sh},
    loopback, servers, tcp,
};

use crate::{tcp_echo, udp_echo};

#[test]
fn a_network_made_anew_has_other_addresses_and_ports() {
    let lab = Lab::builder().build().unwrap();
    let state = || {
        let words = |script: &str| sh(&lab, script).trim().to_owned();
        [
            ifindex(lab.guest(), "loopback0").to_string(),
            ifindex(lab.guest(), "eth0").to_string(),
            words("ip route show table 127"),
            words("ip route show default"),
            words("ip -4 -brief addr show eth0"),
            lab.guest().sysctl("net/ipv4/ip_local_port_range").unwrap(),
            words("nft list chain ip nat WSLPOSTROUTING | grep -o 'masquerade to.*'"),
            format!("{} {} {:?}", lab.gateway(), lab.lan_address(), lab.leased()),
        ]
    };
    let first = state();
    lab.make_network_anew().unwrap();
    let second = state();
    for (old, new) in first.iter().zip(&second) {
        assert_ne!(old, new);
    }
    assert!(second[2].contains(&lab.gateway().to_string()), "{second:?}");
    lab.make_network_anew().unwrap();
    assert_ne!(state(), second, "once more");
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()), "Windows");
    assert_eq!(tcp_echo(&lab, false, 8100), Ok(HELLO.to_vec()), "Linux");
}

#[test]
fn linux_clients_use_the_block_of_the_network_made_anew() {
    let lab = Lab::builder().build().unwrap();
    lab.make_network_anew().unwrap();
    let listener = servers::tcp_holder(lab.windows(), loopback(9100)).unwrap();
    let client = tcp::Client::new(lab.guest(), loopback(9100)).connect().unwrap();
    let (_, from) = listener.accept().unwrap();
    assert!(lab.leased().contains(&from.port()), "{from}");
    drop(client);
    let _server = servers::udp_echo(lab.windows(), loopback(9101)).unwrap();
    assert_eq!(udp_echo(&lab, false, 9101), Ok(HELLO.to_vec()), "UDP");
}

/// An engine keeps its sockets, of which Windows knows nothing.
#[test]
fn a_port_bound_before_is_windows_own_until_it_is_bound_again() {
    let lab = Lab::builder().build().unwrap();
    let server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()));
    lab.make_network_anew().unwrap();
    assert!(!lab.has_reported(Transport::Tcp, 8100));
    assert_eq!(tcp_echo(&lab, true, 8100), Err(tcp::Failure::Refused), "Windows");
    drop(server);
    let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()));
}

#[test]
fn a_published_port_is_forgotten_until_its_container_restarts() {
    let lab = Lab::builder().build().unwrap();
    let docker = Docker::start(&lab, &DockerOptions::default()).unwrap();
    let web =
        docker.run(Container::new("web").serve(Service::TcpEcho { port: 7 }).publish("8080:7")).unwrap();
    lab.make_network_anew().unwrap();
    assert_eq!(tcp_echo(&lab, true, 8080), Err(tcp::Failure::Refused), "Windows knows of no bind");
    docker.restart(&web).unwrap();
    assert!(lab.has_reported(Transport::Tcp, 8080));
}
