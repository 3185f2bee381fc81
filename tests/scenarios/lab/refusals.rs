//! Windows refuses binds although no Linux program has the port (WSL#40984, WSL#13696, microk8s#4858).

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use wsl_mirror_lab::{GUEST_EPHEMERAL, Lab, Transport, checks::OrPanic as _};

/// The error of a bind in the guest.
#[track_caller]
fn bind(lab: &Lab, protocol: Transport, address: &str) -> Result<(), io::ErrorKind> {
    let address: SocketAddr = address.parse().or_panic();
    let bind = || match protocol {
        Transport::Tcp => TcpListener::bind(address).map(drop),
        Transport::Udp => UdpSocket::bind(address).map(drop),
    };
    lab.guest().enter(bind).map_err(|error| error.kind())
}

const REFUSED: Result<(), io::ErrorKind> = Err(io::ErrorKind::AddrInUse);

/// 2.8.7 to 2.9.4: all of Windows' dynamic range, by default from 49152 on.
#[test]
fn binds_in_windows_dynamic_range_are_refused() {
    let lab = Lab::builder().refuse_binds(49_152..=65_535).build().unwrap();
    for protocol in [Transport::Tcp, Transport::Udp] {
        for address in ["127.0.0.1:50000", "0.0.0.0:65535", "[::]:49152"] {
            assert_eq!(bind(&lab, protocol, address), REFUSED, "{protocol:?} {address}");
        }
        for address in ["127.0.0.1:49151", "0.0.0.0:8100", "127.0.0.2:50000", "127.0.0.1:0"] {
            assert_eq!(bind(&lab, protocol, address), Ok(()), "{protocol:?} {address}");
        }
    }
    lab.refuse_binds(&[]).unwrap();
    assert_eq!(bind(&lab, Transport::Tcp, "127.0.0.1:50000"), Ok(()));
}

/// The range is often moved to 1024 on; the block that Windows has leased to the guest lies within.
#[test]
fn binds_in_the_leased_block_are_never_refused() {
    let lab = Lab::builder().refuse_binds(1024..=65_535).build().unwrap();
    let leased = format!("127.0.0.1:{}", GUEST_EPHEMERAL.start() + 7);
    assert_eq!(bind(&lab, Transport::Tcp, &leased), Ok(()));
    assert_eq!(bind(&lab, Transport::Tcp, "127.0.0.1:8100"), REFUSED);
}

#[test]
fn a_port_of_a_windows_program_is_refused_until_it_ends() {
    let lab = Lab::builder().build().unwrap();
    lab.take_port(Transport::Tcp, 8100).unwrap();
    assert_eq!(bind(&lab, Transport::Tcp, "0.0.0.0:8100"), REFUSED);
    assert_eq!(bind(&lab, Transport::Udp, "0.0.0.0:8100"), Ok(()), "the protocol counts");
    assert!(!lab.has_reported(Transport::Tcp, 8100));
    lab.give_port_back(Transport::Tcp, 8100).unwrap();
    assert_eq!(bind(&lab, Transport::Tcp, "0.0.0.0:8100"), Ok(()));
}

#[test]
fn a_refusal_in_one_lab_leaves_the_others_alone() {
    let lab = Lab::builder().refuse_binds(8100..=8100).build().unwrap();
    let other = Lab::builder().build().unwrap();
    assert_eq!(bind(&lab, Transport::Tcp, "127.0.0.1:8100"), REFUSED);
    assert_eq!(bind(&other, Transport::Tcp, "127.0.0.1:8100"), Ok(()));
}
