//! Loading again: under traffic, at the same time, from elsewhere.

use std::{
    ffi::OsString,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab,
    checks::{OrPanic as _, RaiseOnDrop, config, ok, status, windows},
    pace, pins,
    process::{COMMAND_LIMIT, Finished, run},
};

use crate::{
    bpf,
    guest::{DOWNLOAD, exempt_ports, ours, ours_of, published},
};

/// Does `work` while a connection exchanges requests and another one downloads, both from Windows through
/// docker-proxy, and new connections are made one after the other.
///
/// A lost packet costs its connection 200 ms at least (the shortest retransmission timeout): the requests and
/// the new connections show it.
#[track_caller]
pub fn under_traffic(lab: &Lab, work: impl FnOnce()) {
    let requests = windows(lab, 8080).keep_alive(Duration::from_millis(1)).or_panic();
    let done = AtomicBool::new(false);
    let (downloads, connections) = thread::scope(|scope| {
        let raise = RaiseOnDrop(&done);
        let downloading = scope.spawn(|| {
            let mut downloads = 0;
            while !done.load(Ordering::Relaxed) {
                windows(lab, 8019).download(DOWNLOAD).or_panic();
                downloads += 1;
            }
            downloads
        });
        let connecting = scope.spawn(|| {
            let mut connections = 0;
            while !done.load(Ordering::Relaxed) {
                windows(lab, 8080).reset_on_close().echo(b"hello").or_panic();
                connections += 1;
                thread::sleep(Duration::from_millis(5));
            }
            connections
        });
        work();
        drop(raise);
        (downloading.join(), connecting.join())
    });
    let report = requests.stop();
    let (Ok(downloads), Ok(connections)) = (downloads, connections) else { panic!("a client panicked") };
    println!("{report:?}, {downloads:?} downloads, {connections:?} connections");
    assert!(report.failure.is_none(), "the requests: {report:?}");
    // Of times, nothing is judged in emulation.
    assert!(pace::is_emulated() || report.longest < Duration::from_secs(1), "a packet was lost: {report:?}");
    assert!(report.exchanges > pace::at_least(50), "too few to say anything: {report:?}");
    assert!(downloads > 0, "no download came to its end");
    assert!(connections > pace::at_least(20), "too few new connections");
}

#[test]
fn reloading_under_traffic_loses_neither_a_packet_nor_an_exemption() {
    let lab = published();
    let with = config(&lab, "exempt = [\"8300/tcp\", \"8301-8302/udp\"]\n");
    ok(&lab, &["load", "--config", &with]);
    ok(&lab, &["exempt", "add", "8200-8209/tcp", "8300/tcp"]);
    let (mut program, link) = ours(&lab);
    under_traffic(&lab, || {
        for round in 0..pace::rounds(24) {
            // What the file says follows the file; what was written by hand stays.
            let arguments: &[&str] = if round % 2 == 0 {
                &["load", "--config", "/dev/null"]
            } else {
                &["load", "--config", &with]
            };
            ok(&lab, arguments);
            let now = ours(&lab);
            assert!(now.0 != program, "the program is the old one");
            assert!(now.1 == link, "the link is another one");
            program = now.0;
            let expected: &[&str] = if round % 2 == 0 {
                &["8200-8209/tcp", "8300/tcp"]
            } else {
                &["8200-8209/tcp", "8300/tcp", "8301-8302/udp"]
            };
            assert!(exempt_ports(&lab) == expected, "round {round}: {:?}", exempt_ports(&lab));
        }
    });
    ok(&lab, &["exempt", "del", "8300/tcp", "8200-8209"]);
    assert_eq!(exempt_ports(&lab), ["8300/tcp", "8301-8302/udp"], "what the file says is not for `del`");
    let failed = |status: &serde_json::Value| {
        let all = status["verdicts"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|v| v["verdict"] == "failed" && v["packets"] != 0).collect::<Vec<_>>()
    };
    assert_eq!(failed(&status(&lab).0), Vec::<serde_json::Value>::new());
}

#[test]
fn exempting_every_port_in_the_file_fits_and_can_be_taken_back() {
    let lab = Lab::builder().build().unwrap();
    let every = config(&lab, "exempt = [\"1-65535\"]\n");
    ok(&lab, &["load", "--config", &every]);
    assert_eq!(exempt_ports(&lab), ["1-65535/tcp", "1-65535/udp"]);
    ok(&lab, &["load", "--config", "/dev/null"]);
    assert_eq!(exempt_ports(&lab), Vec::<String>::new());
}

/// What is in a directory of the guest.
#[track_caller]
fn names(lab: &Lab, directory: &str) -> Vec<OsString> {
    let list =
        || fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>();
    lab.guest().enter(list).with_context(|| format!("listing {directory}")).or_panic()
}

/// Whether what is there is whole: everything of one load, or nothing of any.
#[track_caller]
fn is_whole(lab: &Lab) {
    let (status, code) = status(lab);
    let has_tcx = bpf::has_tcx(lab);
    let on_hook = if has_tcx { bpf::tcx(lab.guest()).len() } else { lab.filters().or_panic() };
    match code {
        0 => {
            let (program, _) = ours_of(lab, &status);
            assert!(on_hook == 1, "{on_hook} programs on the hook");
            let pinned = lab
                .guest()
                .run("bpftool", ["prog", "show", "pinned", &pins::path("program")])
                .or_panic()
                .stdout;
            assert!(
                pinned.starts_with(&format!("{program}: ")),
                "program {program} runs, pinned is {pinned}"
            );
            let pins = names(lab, &pins::directory());
            // 15 maps, two programs with their links, eight hooks, the programs of UDP's hooks.
            assert!(pins.len() == 28 + 2 * usize::from(has_tcx), "{pins:?}");
        }
        3 => {
            assert!(on_hook == 0, "unloaded, but {on_hook} programs on the hook");
            assert!(!names(lab, pins::BPFFS).iter().any(|name| name == "wsl-mirror"), "something is left");
        }
        _ => panic!("{status}"),
    }
}

/// Runs all of these commands at once.
#[track_caller]
fn at_once(lab: &Lab, commands: &[&str]) -> Vec<Finished> {
    thread::scope(|scope| {
        let running: Vec<_> = commands
            .iter()
            .map(|command| {
                scope.spawn(move || {
                    run(&mut lab.wsl_mirror_command(&[command]).or_panic(), COMMAND_LIMIT)
                        .or_panic()
                        .success()
                        .or_panic()
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)))
            .collect()
    })
}

#[test]
fn loads_at_the_same_time_do_not_get_in_each_others_way() {
    let lab = Lab::builder().build().unwrap();
    // A load waits 20 s for the others. On an emulated machine four of them take longer.
    let crowd = if pace::is_emulated() { 3 } else { 5 };
    for count in [2, crowd, crowd] {
        for _ in 0..pace::rounds(2).max(2) {
            at_once(&lab, &vec!["load"; count]);
            is_whole(&lab);
        }
        ok(&lab, &["unload"]);
        is_whole(&lab);
    }
}

#[test]
fn load_unload_and_those_who_look_do_not_get_in_each_others_way() {
    let lab = Lab::builder().build().unwrap();
    for _ in 0..pace::rounds(6).max(2) {
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..4 {
                    let code = status(&lab).1;
                    assert!(code == 0 || code == 3, "half-way: {code}");
                }
            });
            at_once(&lab, &["load", "unload", "load", "unload"]);
        });
        is_whole(&lab);
    }
}
