//! Carried flows while the programs come, are replaced and go.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, RaiseOnDrop, STEER, load, load_with, unload, windows, windows_udp},
    loopback, nat, pace, servers, tcp, udp,
};

use crate::world::{
    HANG, STREAM, Side, assert_answers, assert_answers_udp, assert_hangs, assert_hangs_udp, detach, download,
    services, upload,
};

const PAUSE: Duration = Duration::from_millis(5);

#[test]
fn eight_reloads_disturb_no_transfer_at_full_speed() {
    let lab = services();
    load(&lab);
    let keep_alive = windows(&lab, 8080).keep_alive(PAUSE).or_panic();
    let socket = windows_udp(&lab, 8080).connect().or_panic();
    let reloaded = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = RaiseOnDrop(&reloaded);
        let (lab, reloaded) = (&*lab, &reloaded);
        let going_on = move || !reloaded.load(Ordering::Relaxed);
        let transfers = [
            scope.spawn(move || {
                while going_on() {
                    download(&windows(lab, 8020), STREAM, || ()).context("download").or_panic();
                }
            }),
            scope.spawn(move || {
                while going_on() {
                    upload(&windows(lab, 8009), STREAM, || ()).context("upload").or_panic();
                }
            }),
        ];
        for round in 0..8 {
            let configuration = if round % 2 == 0 { STEER } else { "" };
            load_with(lab, configuration);
            assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()), "reload {round}");
        }
        drop(stopping);
        for transfer in transfers {
            transfer.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        }
    });
    let report = keep_alive.stop();
    assert_eq!(report.failure, None, "{report:?}");
}

/// The entries outlive the interface, and the flows wait for the programs.
#[test]
fn carried_flows_go_on_when_loopback0_is_back() {
    let lab = Lab::builder().build().or_panic();
    let _servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).or_panic(),
        servers::udp_echo(lab.guest(), loopback(8100)).or_panic(),
    ];
    nat::trap(lab.guest()).or_panic();
    load_with(&lab, STEER);
    let patience = pace::limit(Duration::from_secs(6));
    let mut connection = windows(&lab, 8100).limit(patience).connect().or_panic();
    let socket = windows_udp(&lab, 8100).connect().or_panic();
    tcp::exchange(&mut connection, HELLO).or_panic();
    udp::exchange(&socket, HELLO).or_panic();
    lab.recreate_loopback0().or_panic();
    load_with(&lab, STEER);
    assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()));
    assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    assert_answers(&lab, 8100);
}

/// As when somebody removes one by hand: the next load attaches it, and the connection was only waiting.
#[test]
fn carried_flows_go_on_when_a_detached_program_is_back() {
    for side in [Side::Ingress, Side::Egress] {
        let lab = services();
        load(&lab);
        let mut connection =
            windows(&lab, 8080).limit(pace::limit(Duration::from_secs(6))).connect().or_panic();
        let socket = windows_udp(&lab, 8080).connect().or_panic();
        tcp::exchange(&mut connection, HELLO).or_panic();
        udp::exchange(&socket, HELLO).or_panic();
        detach(&lab, side);
        assert_hangs_udp(&lab, 8081);
        load(&lab);
        assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()), "{side:?}");
        assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()), "{side:?}");
    }
}

#[test]
fn unload_ends_carried_flows_and_leaves_new_ones_to_the_engine() {
    let lab = services();
    load(&lab);
    let mut connection = windows(&lab, 8080).reset_on_close().limit(pace::limit(HANG)).connect().or_panic();
    let socket = windows_udp(&lab, 8080).limit(pace::limit(HANG)).connect().or_panic();
    tcp::exchange(&mut connection, HELLO).or_panic();
    udp::exchange(&socket, HELLO).or_panic();
    unload(&lab);
    // A reset where the kernel can destroy docker-proxy's socket, silence elsewhere.
    assert!(tcp::exchange(&mut connection, HELLO).is_err());
    assert!(udp::exchange(&socket, HELLO).is_err());
    for port in [8080, 8081] {
        assert_hangs(&lab, port);
        assert_hangs_udp(&lab, port);
    }
    load(&lab);
    assert_answers(&lab, 8080);
    assert_answers_udp(&lab, 8080);
}
