//! Loads that fail, or are killed, at every system call that matters: strace makes them.

use std::{fs, time::Duration};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::{OrPanic as _, config, ok, status, windows, wrapped},
    pace,
    process::Finished,
    tcp::KeepAlive,
};

use crate::guest::{everything, is_steered, ours, published, unchanged};

/// Runs a command and lets its call number `when` of `call` go wrong; whether it makes that many.
#[track_caller]
pub fn injected(lab: &Lab, call: &str, what: &str, when: usize, arguments: &[&str]) -> (Finished, bool) {
    let trace = format!("{SCRATCH}/trace");
    let filter = format!("trace={call}");
    let inject = format!("inject={call}:{what}:when={when}");
    let strace = ["strace", "-f", "-qq", "-o", &trace, "-e", &filter, "-e", &inject];
    let finished = wrapped(lab, &strace, arguments);
    let trace = lab.guest().enter(|| fs::read_to_string(&trace)).or_panic();
    let hit = trace.contains("(INJECTED)") || trace.contains("killed by SIGKILL");
    (finished, hit)
}

/// Lets each call of each kind go wrong, one at a time, until there is no such call any more and the command
/// succeeds. After each run `check` has to bring things back to what they were.
#[track_caller]
fn each(lab: &Lab, calls: &[&str], what: &str, arguments: &[&str], mut check: impl FnMut(&Finished)) {
    for call in calls {
        for when in pace::samples() {
            let (finished, hit) = injected(lab, call, what, when, arguments);
            println!("{call} number {when}: {finished}");
            check(&finished);
            if !hit {
                println!("{call}: fewer than {when}");
                assert!(finished.status.success(), "it fails by itself: {finished}");
                break;
            }
        }
    }
}

/// What a load of each kind does to the machine, or asks it.
const CALLS: [&str; 9] = ["bpf", "mount", "mkdir", "rename", "ioctl", "socket", "flock", "fsopen", "sendto"];

#[test]
fn a_first_load_that_fails_anywhere_leaves_nothing() {
    for text in ["exempt = [8300]\n", "exempt = [8300]\nhook = \"cls_bpf\"\n"] {
        let lab = Lab::builder().bpffs(false).build().unwrap();
        let before = everything(&lab);
        let path = config(&lab, text);
        let (mut failed, mut survived) = (0, 0);
        // On the other hook only what is different there.
        let calls = if text.contains("cls_bpf") { &CALLS[8..] } else { &CALLS };
        each(&lab, calls, "error=ENOMEM", &["load", "--config", &path], |finished| {
            if finished.status.success() {
                survived += 1;
                assert!(status(&lab).1 == 0, "it said that it had loaded");
                ok(&lab, &["unload"]);
            } else {
                failed += 1;
                assert!(finished.stderr.starts_with("wsl-mirror: "), "without a word");
            }
            unchanged(&lab, &before);
        });
        println!("{failed} failed, {survived} survived");
        assert!(failed > 0, "nothing was injected that matters");
    }
}

/// A flow whose requests show that steering never stopped.
#[track_caller]
fn requests(lab: &Lab) -> KeepAlive {
    windows(lab, 8080).keep_alive(Duration::from_millis(2)).context("the first connection").or_panic()
}

#[track_caller]
fn went_on(requests: KeepAlive) {
    let report = requests.stop();
    println!("{report:?}");
    assert!(report.failure.is_none() && report.exchanges > pace::at_least(100), "{report:?}");
}

#[test]
fn a_second_load_that_fails_anywhere_leaves_the_first_one_as_it_was() {
    for hook in ["", "hook = \"cls_bpf\"\n"] {
        let lab = published();
        let old = config(&lab, &format!("exempt = [8300]\n{hook}"));
        let new = format!("{SCRATCH}/new.toml");
        let text = format!("exempt = [8301]\nmark = 0x3000\ndefault = \"pass\"\n{hook}");
        lab.guest().enter(|| fs::write(&new, text)).unwrap();
        ok(&lab, &["load", "--config", &old]);
        ok(&lab, &["exempt", "add", "8200/udp"]);
        let requests = requests(&lab);
        let mut before = everything(&lab);
        let (mut failed, mut survived) = (0, 0);
        let calls = if hook.is_empty() { &CALLS } else { &CALLS[8..] };
        each(&lab, calls, "error=ENOMEM", &["load", "--config", &new], |finished| {
            if finished.status.success() {
                survived += 1;
                assert!(status(&lab).0["mark"] == 0x3000, "it said that it had loaded");
                ok(&lab, &["load", "--config", &old]);
                before = everything(&lab);
            } else {
                failed += 1;
                assert!(finished.stderr.starts_with("wsl-mirror: "), "without a word");
                unchanged(&lab, &before);
            }
        });
        println!("{failed} failed, {survived} survived");
        assert!(failed > 0, "nothing was injected that matters");
        ok(&lab, &["load", "--config", &old]);
        assert!(is_steered(&lab, 8081), "new flows are steered");
        went_on(requests);
    }
}

#[test]
fn a_first_load_that_is_killed_anywhere_is_repaired_by_the_next_one() {
    let lab = Lab::builder().bpffs(false).build().unwrap();
    let before = everything(&lab);
    let mut round = 0;
    each(&lab, &["bpf", "mkdir", "rename"], "signal=KILL", &["load"], |finished| {
        if finished.status.success() {
            assert!(status(&lab).1 == 0, "it was not killed");
        }
        // Whoever looks in between is told something that makes sense.
        let code = status(&lab).1;
        assert!([0, 3, 4].contains(&code), "status says {code}");
        round += 1;
        if round % 2 == 0 {
            ok(&lab, &["load"]);
            assert!(status(&lab).1 == 0);
            ours(&lab);
        }
        // Unloading takes away what a killed one left as well.
        ok(&lab, &["unload"]);
        unchanged(&lab, &before);
    });
}

#[test]
fn a_second_load_that_is_killed_anywhere_never_stops_the_steering() {
    let lab = published();
    let path = config(&lab, "exempt = [8300]\n");
    ok(&lab, &["load"]);
    ok(&lab, &["exempt", "add", "8200/udp"]);
    let (_, link) = ours(&lab);
    let requests = requests(&lab);
    let mut round = 0;
    each(&lab, &["bpf", "rename"], "signal=KILL", &["load", "--config", &path], |_| {
        assert!(ours(&lab).1 == link, "the link is another one");
        assert!(windows(&lab, 8081).reset_on_close().echo(b"hello").is_ok(), "a new flow is not steered");
        round += 1;
        if round % 4 == 0 {
            ok(&lab, &["load"]);
            assert!(ours(&lab).1 == link, "the link is another one after the repair");
            assert!(
                crate::guest::exempt_ports(&lab) == ["8200/udp"],
                "{:?}",
                crate::guest::exempt_ports(&lab)
            );
        }
    });
    went_on(requests);
}
