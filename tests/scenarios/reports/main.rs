//! What people report of mirrored mode, reproduced from outside: what a user sees without wsl-mirror, and that `load`
//! changes nothing about it today.
//!
//! A module's comment names the report and its threads. A test that fails because a user sees
//! less trouble than before is to be rewritten: from then on it protects the remedy.

mod garbled_ports;
mod half_made;
mod ipv6_first;
mod local_ports;
mod never_sent;
mod older_remedy;
mod refused_binds;

use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, load, status},
    loopback, tcp,
};

/// What a program on Windows, or a Linux program, sees of a TCP port of 127.0.0.1.
type Seen = Result<(), tcp::Failure>;

/// No answer at all: browsers and clients wait for a minute or two.
const HANGS: Seen = Err(tcp::Failure::ConnectTimedOut);
/// "Connection refused", at once.
const REFUSED: Seen = Err(tcp::Failure::Refused);

/// What a program on Windows sees of the port.
fn from_windows(lab: &Lab, port: u16) -> Seen {
    tcp::Client::new(lab.windows(), loopback(port)).echo(HELLO).map(drop)
}

/// What a Linux program sees of the port.
fn from_linux(lab: &Lab, port: u16) -> Seen {
    tcp::Client::new(lab.guest(), loopback(port)).echo(HELLO).map(drop)
}

/// Calls `check` without wsl-mirror, and again after a `load` that succeeds.
#[track_caller]
fn before_and_after_load(lab: &Lab, check: impl Fn(&str)) {
    check("without wsl-mirror");
    load(lab);
    check("after `wsl-mirror load`");
}

/// Nothing in `status` tells the user why.
#[track_caller]
fn assert_status_says_steering(lab: &Lab) {
    let (report, code) = status(lab);
    assert_eq!((report["steering"].as_bool(), code), (Some(true), 0), "{report}");
}
