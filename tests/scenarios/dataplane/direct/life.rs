//! Direct flows while the programs come, are replaced and go.

use std::{
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab, SharedLab,
    checks::{
        HELLO, OrPanic as _, RaiseOnDrop, config, load_with, network, sh, unload, windows, windows_udp,
    },
    nat, pace, tcp, udp,
};

use super::machine::DIRECT;
use crate::world::{
    HANG, STREAM, assert_answers, assert_answers_udp, assert_hangs, assert_hangs_udp, download, on_alias,
    services, upload,
};

/// Docker's services, direct.
#[track_caller]
fn direct() -> SharedLab {
    let lab = services();
    load_with(&lab, DIRECT);
    lab
}

#[track_caller]
fn assert_all_direct(lab: &Lab) {
    assert_eq!(lab.packets("steer_new").or_panic() + lab.packets("steer_instead").or_panic(), 0);
    assert!(lab.packets("direct_new").or_panic() > 0);
}

#[test]
fn reloads_disturb_no_direct_transfer() {
    let lab = direct();
    let keep_alive = windows(&lab, 8080).keep_alive(Duration::from_millis(5)).or_panic();
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
        for round in 0..4 {
            load_with(lab, DIRECT);
            assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()), "reload {round}");
        }
        drop(stopping);
        for transfer in transfers {
            transfer.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        }
    });
    let report = keep_alive.stop();
    assert_eq!(report.failure, None, "{report:?}");
    assert_all_direct(&lab);
}

#[test]
fn unload_ends_direct_flows_and_leaves_nothing() {
    let lab = services();
    let state = || {
        let routes = sh(&lab, "ip route show table 127; ip rule");
        (network(lab.guest()), routes)
    };
    let before = state();
    load_with(&lab, DIRECT);
    assert_ne!(state(), before);
    let limit = pace::limit(HANG);
    let mut connection = windows(&lab, 8080).reset_on_close().limit(limit).connect().or_panic();
    let socket = windows_udp(&lab, 8080).limit(limit).connect().or_panic();
    tcp::exchange(&mut connection, HELLO).or_panic();
    udp::exchange(&socket, HELLO).or_panic();
    assert_all_direct(&lab);
    assert_eq!(nat::conntrack_with(lab.guest(), &[&on_alias()]).or_panic().len(), 2);
    unload(&lab);
    assert_eq!(nat::conntrack_with(lab.guest(), &[&on_alias()]).or_panic(), Vec::<String>::new());
    assert_eq!(state(), before);
    assert!(tcp::exchange(&mut connection, HELLO).is_err());
    assert!(udp::exchange(&socket, HELLO).is_err());
    assert_hangs(&lab, 8080);
    assert_hangs_udp(&lab, 8080);
    load_with(&lab, DIRECT);
    assert_answers(&lab, 8080);
    assert_answers_udp(&lab, 8080);
}

/// Wherever a load is killed: live direct flows go on, and the next load makes whole what it left.
#[test]
fn a_load_that_is_killed_ends_no_direct_flow() {
    let lab = direct();
    let mut connection = windows(&lab, 8080).limit(pace::limit(Duration::from_secs(6))).connect().or_panic();
    let socket = windows_udp(&lab, 8080).connect().or_panic();
    let path = config(&lab, DIRECT);
    for after in [1, 3, 6, 10, 15, 20, 30, 40] {
        let mut load = lab.wsl_mirror_command(&["load", "--config", &path]).or_panic();
        let mut load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().or_panic();
        thread::sleep(Duration::from_millis(after));
        let _ = load.kill();
        load.wait().or_panic();
        assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()), "after {after} ms");
        assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()), "after {after} ms");
        assert_answers(&lab, 8081);
    }
    load_with(&lab, DIRECT);
    let before = lab.packets("direct_new").or_panic();
    assert_answers(&lab, 8080);
    assert_answers_udp(&lab, 8081);
    assert_eq!(lab.packets("direct_new").or_panic(), before + 2);
}

/// The entries outlive the interface, and the flows wait for the programs and the route.
#[test]
fn direct_flows_go_on_when_loopback0_is_back() {
    let lab = direct();
    let mut connection = windows(&lab, 8080).limit(pace::limit(Duration::from_secs(6))).connect().or_panic();
    let socket = windows_udp(&lab, 8080).connect().or_panic();
    tcp::exchange(&mut connection, HELLO).or_panic();
    udp::exchange(&socket, HELLO).or_panic();
    lab.recreate_loopback0().or_panic();
    lab.guest().set_sysctls([("net/ipv4/conf/loopback0/forwarding", "1")]).or_panic();
    load_with(&lab, DIRECT);
    assert_eq!(tcp::exchange(&mut connection, HELLO), Ok(HELLO.to_vec()));
    assert_eq!(udp::exchange(&socket, HELLO), Ok(HELLO.to_vec()));
    assert_answers(&lab, 8080);
    assert_eq!(lab.packets("steer_instead").or_panic(), 0);
}
