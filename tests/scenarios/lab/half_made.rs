//! Half-made networks (WSL#14080, WSL#41398, WSL#41228), and what still works in each.

use wsl_mirror_lab::{
    HalfMade, Lab,
    checks::{HELLO, sh},
    loopback, servers, tcp,
};

use crate::tcp_echo;

/// The answers that a server of Linux gives to Windows and to Linux.
fn answers(lab: &Lab) -> [Result<(), tcp::Failure>; 2] {
    [true, false].map(|windows| tcp_echo(lab, windows, 8100).map(drop))
}

const HANGS: Result<(), tcp::Failure> = Err(tcp::Failure::ConnectTimedOut);

#[test]
fn each_half_made_network_is_missing_its_part() {
    for (missing, [windows, linux]) in [
        // Without a NIC, Windows has no way to the guest; Linux uses lo.
        (HalfMade::NoLoopback0, [HANGS, Ok(())]),
        (HalfMade::Eth0Down, [Ok(()), Ok(())]),
        // Replies to Windows go to lo, and nobody there waits for them.
        (HalfMade::NoTable127, [HANGS, Ok(())]),
        (HalfMade::NoNeighbour, [HANGS, HANGS]),
    ] {
        let lab = Lab::builder().half_made(missing).build().unwrap();
        let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
        let [from_windows, from_linux] = answers(&lab);
        assert_eq!(from_linux, linux, "{missing:?}, Linux");
        assert_eq!(from_windows.is_ok(), windows.is_ok(), "{missing:?}, Windows: {from_windows:?}");
        lab.complete_network(missing).unwrap();
        assert_eq!(answers(&lab), [Ok(()), Ok(())], "{missing:?}, completed");
    }
}

#[test]
fn a_network_that_was_half_made_is_as_at_first() {
    let lab = Lab::builder().build().unwrap();
    let state = || {
        sh(
            &lab,
            "ip -brief addr | sed 's/@if[0-9]*//'; ip rule; ip route show table 127; ip route; ip neigh show nud permanent",
        )
    };
    let before = state();
    for missing in HalfMade::ALL {
        lab.half_make_network(missing).unwrap();
        assert_ne!(state(), before, "{missing:?}");
        lab.complete_network(missing).unwrap();
        let strip = |text: String| text.lines().filter(|line| !line.contains("fe80")).count();
        assert_eq!(strip(state()), strip(before.clone()), "{missing:?}: {}", state());
    }
}

#[test]
fn a_half_made_network_can_be_made_anew() {
    for missing in HalfMade::ALL {
        let lab = Lab::builder().half_made(missing).build().unwrap();
        lab.make_network_anew().unwrap();
        let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
        assert_eq!(tcp_echo(&lab, true, 8100), Ok(HELLO.to_vec()), "{missing:?}");
    }
}
