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
const REFUSED: Result<(), tcp::Failure> = Err(tcp::Failure::Refused);

#[test]
fn each_half_made_network_is_missing_its_part() {
    for (missing, [windows, linux]) in [
        // Without the NIC, Windows looks for the port at its own sockets (the model's); Linux uses lo.
        (HalfMade::NoLoopback0, [REFUSED, Ok(())]),
        (HalfMade::Eth0Down, [Ok(()), Ok(())]),
        // Replies to Windows go to lo, and nobody there waits for them.
        (HalfMade::NoTable127, [HANGS, Ok(())]),
        (HalfMade::NoNeighbour, [HANGS, HANGS]),
    ] {
        let lab = Lab::builder().half_made(missing).build().unwrap();
        let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
        assert_eq!(answers(&lab), [windows, linux], "{missing:?}: Windows, Linux");
        lab.complete_network(missing).unwrap();
        assert_eq!(answers(&lab), [Ok(()), Ok(())], "{missing:?}, completed");
    }
}

/// The guest's addresses, rules, routes and permanent neighbours, a sorted line each.
///
/// The kernel brings a NIC's link-local address and state when it has looked at the carrier: both are left out.
#[track_caller]
fn network(lab: &Lab) -> Vec<String> {
    let text = sh(
        lab,
        "ip -brief addr | sed -E 's/@if[0-9]+//; s/ [A-Z]+ / /'; ip rule; ip route show table 127; ip route; \
         ip neigh show nud permanent",
    );
    let line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().filter(|word| !word.starts_with("fe80:")).collect();
        words.join(" ")
    };
    let mut lines: Vec<_> = text.lines().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn a_network_that_was_half_made_is_as_at_first() {
    let lab = Lab::builder().build().unwrap();
    let before = network(&lab);
    for missing in HalfMade::ALL {
        lab.half_make_network(missing).unwrap();
        assert_ne!(network(&lab), before, "{missing:?}");
        lab.complete_network(missing).unwrap();
        assert_eq!(network(&lab), before, "{missing:?}");
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
