//! The Hyper-V firewall drops without a word. Which packets it sees here is the model's.

use wsl_mirror_lab::{Dropped, Lab, Transport, checks::HELLO, loopback, servers, tcp, udp};

use crate::{tcp_echo, udp_echo};

#[test]
fn a_port_that_the_firewall_blocks_hangs() {
    let lab = Lab::builder().build().unwrap();
    let _servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).unwrap(),
        servers::udp_echo(lab.guest(), loopback(8100)).unwrap(),
    ];
    lab.block_port(Transport::Tcp, 8100).unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Err(tcp::Failure::ConnectTimedOut), "Windows");
    assert_eq!(tcp_echo(&lab, false, 8100), Err(tcp::Failure::ConnectTimedOut), "Linux");
    assert_eq!(udp_echo(&lab, true, 8100), Ok(HELLO.to_vec()), "the protocol counts");
    assert!(lab.dropped(Dropped::Firewall).unwrap() > 0);
    lab.unblock_port(Transport::Tcp, 8100).unwrap();
    assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()));
    lab.block_port(Transport::Udp, 8100).unwrap();
    assert_eq!(udp_echo(&lab, true, 8100), Err(udp::Failure::TimedOut));
}

/// Outbound rules look at the port that the guest sends to, so replies pass.
#[test]
fn an_outbound_rule_stops_linux_and_not_windows() {
    let lab = Lab::builder().build().unwrap();
    let _servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).unwrap(),
        servers::tcp_echo(lab.windows(), loopback(9100)).unwrap(),
        servers::udp_echo(lab.windows(), loopback(9100)).unwrap(),
    ];
    for port in [8100, 9100] {
        lab.block_port_outbound(Transport::Tcp, port).unwrap();
        assert_eq!(tcp_echo(&lab, false, port), Err(tcp::Failure::ConnectTimedOut), "Linux, {port}");
        assert_eq!(tcp_echo(&lab, true, port), Ok(HELLO.to_vec()), "Windows, {port}");
    }
    assert_eq!(udp_echo(&lab, false, 9100), Ok(HELLO.to_vec()), "the protocol counts");
    assert!(lab.dropped(Dropped::Firewall).unwrap() > 0);
    lab.unblock_port_outbound(Transport::Tcp, 9100).unwrap();
    assert_eq!(tcp_echo(&lab, false, 9100), Ok(HELLO.to_vec()));
}
