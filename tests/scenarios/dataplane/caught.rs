//! Flows that an engine's rule caught before the program was there.

use std::{thread, time::Duration};

use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, load, wait_until, windows, windows_udp},
    nat, pace, udp,
};

use crate::world::{HANG, services};

#[test]
fn a_syn_caught_before_the_load_gets_through_when_sent_again() {
    let lab = services();
    let client = windows(&lab, 8080).from_port(40_000).limit(pace::limit(Duration::from_secs(10)));
    let before = nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic();
    thread::scope(|scope| {
        let connecting = scope.spawn(|| client.echo(HELLO));
        wait_until("the SYN to be caught", Duration::from_secs(1), || {
            nat::dnat_packets(lab.guest(), "tcp", 8080).or_panic() > before
        });
        load(&lab);
        assert!(!connecting.is_finished(), "the first SYN was not caught after all");
        let answer = connecting.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        assert_eq!(answer, Ok(HELLO.to_vec()));
    });
    assert_eq!(lab.packets("steer_new").or_panic(), 1);
}

#[test]
fn a_udp_flow_caught_before_the_load_gets_through_after_it() {
    let lab = services();
    let socket = windows_udp(&lab, 8080).limit(HANG).connect().or_panic();
    for _ in 0..2 {
        assert_eq!(udp::exchange(&socket, HELLO), Err(udp::Failure::TimedOut), "without wsl-mirror");
    }
    load(&lab);
    socket.set_read_timeout(Some(udp::limit())).or_panic();
    for _ in 0..2 {
        assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    }
    assert_eq!(lab.packets("steer_new").or_panic(), 1);
}
