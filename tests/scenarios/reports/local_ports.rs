//! Report 8: a widened `net.ipv4.ip_local_port_range`, from a file of sysctls (WSL#41227).

use wsl_mirror_lab::{Lab, loopback, servers};

use crate::{HANGS, before_and_after_load, from_linux, from_windows};

/// Windows sends the guest only the ports that it has leased: replies to others are lost.
#[test]
fn linux_clients_hang_outside_of_the_leased_block() {
    let lab = Lab::builder().build().unwrap();
    let _on_linux = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let _on_windows = servers::tcp_echo(lab.windows(), loopback(9100)).unwrap();
    assert_eq!(from_linux(&lab, 8100), Ok(()), "inside of the block");
    lab.guest().set_sysctls([("net/ipv4/ip_local_port_range", "32768 40000")]).unwrap();
    before_and_after_load(&lab, |when| {
        assert_eq!(from_linux(&lab, 8100), HANGS, "{when}: Linux to Linux");
        assert_eq!(from_linux(&lab, 9100), HANGS, "{when}: Linux to Windows");
        assert_eq!(from_windows(&lab, 8100), Ok(()), "{when}: Windows to Linux");
    });
}
