//! Report 11: mirrored mode is half there after an update of Windows or a VPN change (WSL#14080, WSL#41398, WSL#41228).

use wsl_mirror_lab::{
    HalfMade, Lab,
    checks::{OrPanic as _, refused},
    loopback, servers,
};

use crate::{HANGS, assert_status_says_steering, before_and_after_load, from_linux, from_windows};

/// The exit code of a `load` without `loopback0`.
const NO_INTERFACE: i32 = 7;

/// A lab with a server of Linux on port 8100, and its network half made.
#[track_caller]
fn half_made(missing: HalfMade) -> (Lab, servers::Server) {
    let build = || {
        let lab = Lab::builder().half_made(missing).build()?;
        let server = servers::tcp_echo(lab.guest(), loopback(8100))?;
        anyhow::Ok((lab, server))
    };
    build().or_panic()
}

#[test]
fn windows_does_not_reach_linux_without_loopback0() {
    let (lab, _server) = half_made(HalfMade::NoLoopback0);
    assert!(from_windows(&lab, 8100).is_err());
    assert_eq!(from_linux(&lab, 8100), Ok(()));
    refused(&lab, &["load"], NO_INTERFACE);
    assert!(from_windows(&lab, 8100).is_err());
}

#[test]
fn windows_hangs_while_table_127_is_empty() {
    let (lab, _server) = half_made(HalfMade::NoTable127);
    before_and_after_load(&lab, |when| {
        assert_eq!(from_windows(&lab, 8100), HANGS, "{when}: Windows");
        assert_eq!(from_linux(&lab, 8100), Ok(()), "{when}: Linux");
    });
    assert_status_says_steering(&lab);
}

#[test]
fn everything_hangs_without_the_gateways_neighbour_entry() {
    let (lab, _server) = half_made(HalfMade::NoNeighbour);
    before_and_after_load(&lab, |when| {
        assert_eq!(from_windows(&lab, 8100), HANGS, "{when}: Windows");
        assert_eq!(from_linux(&lab, 8100), HANGS, "{when}: Linux");
    });
    assert_status_says_steering(&lab);
}

/// Nothing is wrong with 127.0.0.1: users miss the internet.
#[test]
fn the_internet_is_gone_while_eth0_is_down() {
    let (lab, _server) = half_made(HalfMade::Eth0Down);
    before_and_after_load(&lab, |when| {
        let route = lab.guest().run("ip", ["route", "get", "192.0.2.1"]).unwrap_err();
        assert!(format!("{route:#}").contains("unreachable"), "{when}: {route:#}");
        assert_eq!(from_windows(&lab, 8100), Ok(()), "{when}: Windows");
        assert_eq!(from_linux(&lab, 8100), Ok(()), "{when}: Linux");
    });
}
