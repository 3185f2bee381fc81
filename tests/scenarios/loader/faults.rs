//! Loads that fail, or are killed, at every system call that matters: strace makes them.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use wsl_mirror_lab::{Lab, SCRATCH, pace, process::Finished, tcp::KeepAlive};

use crate::guest::{
    config, everything, from_windows, is_steered, ok, ours, published, run_wrapped, status, unchanged,
};

/// Runs a command and lets its call number `when` of `call` go wrong; whether it makes that many.
fn injected(lab: &Lab, call: &str, what: &str, when: usize, arguments: &[&str]) -> Result<(Finished, bool)> {
    let trace = format!("{SCRATCH}/trace");
    let filter = format!("trace={call}");
    let inject = format!("inject={call}:{what}:when={when}");
    let strace = ["strace", "-f", "-qq", "-o", &trace, "-e", &filter, "-e", &inject];
    let finished = run_wrapped(lab, &strace, arguments)?;
    let trace = lab.guest().enter(|| fs::read_to_string(&trace))?;
    let hit = trace.contains("(INJECTED)") || trace.contains("killed by SIGKILL");
    Ok((finished, hit))
}

/// Lets each call of each kind go wrong, one at a time, until there is no such call any more and the command
/// succeeds. After each run `check` has to bring things back to what they were.
fn each(
    lab: &Lab,
    calls: &[&str],
    what: &str,
    arguments: &[&str],
    mut check: impl FnMut(&Finished) -> Result<()>,
) -> Result<()> {
    for call in calls {
        for when in pace::samples() {
            let (finished, hit) = injected(lab, call, what, when, arguments)?;
            check(&finished).with_context(|| format!("{call} number {when}: {finished}"))?;
            if !hit {
                println!("{call}: fewer than {when}");
                ensure!(finished.status.success(), "it fails by itself: {finished}");
                break;
            }
        }
    }
    Ok(())
}

/// What a load of each kind does to the machine, or asks it.
const CALLS: [&str; 9] = ["bpf", "mount", "mkdir", "rename", "ioctl", "socket", "flock", "fsopen", "sendto"];

#[test]
fn a_first_load_that_fails_anywhere_leaves_nothing() -> Result<()> {
    for text in ["exempt = [8300]\n", "exempt = [8300]\nhook = \"cls_bpf\"\n"] {
        let lab = Lab::builder().bpffs(false).build()?;
        let before = everything(&lab)?;
        let path = config(&lab, text)?;
        let (mut failed, mut survived) = (0, 0);
        // On the other hook only what is different there.
        let calls = if text.contains("cls_bpf") { &CALLS[8..] } else { &CALLS };
        each(&lab, calls, "error=ENOMEM", &["load", "--config", &path], |finished| {
            if finished.status.success() {
                survived += 1;
                ensure!(status(&lab)?.1 == 0, "it said that it had loaded");
                ok(&lab, &["unload"])?;
            } else {
                failed += 1;
                ensure!(finished.stderr.starts_with("wsl-mirror: "), "without a word");
            }
            unchanged(&lab, &before)
        })?;
        println!("{failed} failed, {survived} survived");
        ensure!(failed > 0, "nothing was injected that matters");
    }
    Ok(())
}

/// A flow whose requests show that steering never stopped.
fn requests(lab: &Lab) -> Result<KeepAlive> {
    from_windows(lab, 8080).keep_alive(Duration::from_millis(2)).context("the first connection")
}

fn went_on(requests: KeepAlive) -> Result<()> {
    let report = requests.stop();
    println!("{report:?}");
    ensure!(report.failure.is_none() && report.exchanges > pace::at_least(100), "{report:?}");
    Ok(())
}

#[test]
fn a_second_load_that_fails_anywhere_leaves_the_first_one_as_it_was() -> Result<()> {
    for hook in ["", "hook = \"cls_bpf\"\n"] {
        let lab = published()?;
        let old = config(&lab, &format!("exempt = [8300]\n{hook}"))?;
        let new = format!("{SCRATCH}/new.toml");
        let text = format!("exempt = [8301]\nmark = 0x3000\ndefault = \"pass\"\n{hook}");
        lab.guest().enter(|| fs::write(&new, text))?;
        ok(&lab, &["load", "--config", &old])?;
        ok(&lab, &["exempt", "add", "8200/udp"])?;
        let requests = requests(&lab)?;
        let mut before = everything(&lab)?;
        let (mut failed, mut survived) = (0, 0);
        let calls = if hook.is_empty() { &CALLS } else { &CALLS[8..] };
        each(&lab, calls, "error=ENOMEM", &["load", "--config", &new], |finished| {
            if finished.status.success() {
                survived += 1;
                ensure!(status(&lab)?.0["mark"] == 0x3000, "it said that it had loaded");
                ok(&lab, &["load", "--config", &old])?;
                before = everything(&lab)?;
            } else {
                failed += 1;
                ensure!(finished.stderr.starts_with("wsl-mirror: "), "without a word");
                unchanged(&lab, &before)?;
            }
            Ok(())
        })?;
        println!("{failed} failed, {survived} survived");
        ensure!(failed > 0, "nothing was injected that matters");
        ok(&lab, &["load", "--config", &old])?;
        ensure!(is_steered(&lab, 8081), "new flows are steered");
        went_on(requests)?;
        lab.keep();
    }
    Ok(())
}

#[test]
fn a_first_load_that_is_killed_anywhere_is_repaired_by_the_next_one() -> Result<()> {
    let lab = Lab::builder().bpffs(false).build()?;
    let before = everything(&lab)?;
    let mut round = 0;
    each(&lab, &["bpf", "mkdir", "rename"], "signal=KILL", &["load"], |finished| {
        if finished.status.success() {
            ensure!(status(&lab)?.1 == 0, "it was not killed");
        }
        // Whoever looks in between is told something that makes sense.
        let code = status(&lab)?.1;
        ensure!([0, 3, 4].contains(&code), "status says {code}");
        round += 1;
        if round % 2 == 0 {
            ok(&lab, &["load"])?;
            ensure!(status(&lab)?.1 == 0);
            ours(&lab)?;
        }
        // Unloading takes away what a killed one left as well.
        ok(&lab, &["unload"])?;
        unchanged(&lab, &before)
    })?;
    Ok(())
}

#[test]
fn a_second_load_that_is_killed_anywhere_never_stops_the_steering() -> Result<()> {
    let lab = published()?;
    let path = config(&lab, "exempt = [8300]\n")?;
    ok(&lab, &["load"])?;
    ok(&lab, &["exempt", "add", "8200/udp"])?;
    let (_, link) = ours(&lab)?;
    let requests = requests(&lab)?;
    let mut round = 0;
    each(&lab, &["bpf", "rename"], "signal=KILL", &["load", "--config", &path], |_| {
        ensure!(ours(&lab)?.1 == link, "the link is another one");
        ensure!(
            from_windows(&lab, 8081).reset_on_close().echo(b"hello").is_ok(),
            "a new flow is not steered"
        );
        round += 1;
        if round % 4 == 0 {
            ok(&lab, &["load"])?;
            ensure!(ours(&lab)?.1 == link, "the link is another one after the repair");
            ensure!(crate::guest::exempt(&lab)? == ["8200/udp"], "{:?}", crate::guest::exempt(&lab)?);
        }
        Ok(())
    })?;
    went_on(requests)?;
    lab.keep();
    Ok(())
}
