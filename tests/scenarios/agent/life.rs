//! How the agent begins and ends, and what it tells systemd.

use std::{
    fs::{self, File},
    os::unix::net::UnixDatagram,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use wsl_mirror_lab::{Lab, SCRATCH, pace, process::Background};

use crate::guest::{Agent, LIMIT, answers, ok, proxied, sh, soon, status};

#[test]
fn it_ends_well_and_everything_goes_on() -> Result<()> {
    let (lab, mut proxy) = proxied(Lab::builder().build()?)?;
    for signal in [Signal::TERM, Signal::INT] {
        let agent = Agent::start(&lab, "steering loopback0")?;
        agent.0.signal(signal)?;
        agent.0.finish(LIMIT)?.success()?;
        assert!(answers(&lab, 8080));
    }
    proxy.serve("0.0.0.0:8081")?;
    assert!(answers(&lab, 8081), "what comes later is steered too");
    let (report, code) = status(&lab)?;
    assert_eq!((report["agent"].is_null(), code), (true, 0));
    ensure!(!lab.guest().enter(|| fs::exists("/run/wsl-mirror"))?, "something is left in /run");
    ok(&lab, &["unload"])?;
    Ok(())
}

#[test]
fn after_a_kill_the_next_one_takes_up_everything() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    let (before, _) = status(&lab)?;
    assert_eq!(before["agent"]["pid"], agent.0.pid());
    agent.kill()?;
    assert!(answers(&lab, 8080));
    let (report, code) = status(&lab)?;
    assert_eq!((report["agent"].is_null(), code), (true, 0), "a report of somebody dead is none");
    // What changes while there is none, the next one finds.
    lab.recreate_loopback0()?;
    assert!(!answers(&lab, 8080));
    let _next = Agent::start(&lab, "steering loopback0")?;
    assert!(answers(&lab, 8080));
    Ok(())
}

#[test]
fn there_is_one_in_a_distribution_and_unload_says_who_is_in_its_way() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    for (command, words) in [("run", "is at work in this distribution already"), ("unload", "end it first")] {
        let refused = lab.wsl_mirror(&[command])?;
        assert_eq!(refused.status.code(), Some(14), "{refused}");
        ensure!(
            refused.stderr.contains(words) && refused.stderr.contains(&agent.0.pid().to_string()),
            "{refused}"
        );
    }
    assert!(answers(&lab, 8080));
    // A load beside it is no harm.
    ok(&lab, &["load"])?;
    assert!(answers(&lab, 8080));
    agent.end()?;
    ok(&lab, &["unload"])?;
    assert!(!answers(&lab, 8080), "the trap is no trap");
    Ok(())
}

#[test]
fn one_that_starts_while_another_ends_is_seen_and_keeps_a_third_out() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().loopback0(false).build()?)?;
    let mut agent = Agent::start(&lab, "waiting for loopback0")?;
    // The new one comes to the lock before, while and after the old one leaves it.
    for milliseconds in [0, 5, 10, 20, 40, 80] {
        let next = Agent(Background::spawn(&mut lab.wsl_mirror_command(&["run"])?)?);
        thread::sleep(Duration::from_millis(milliseconds));
        agent.end()?;
        next.says("waiting for loopback0")?;
        let (seen, _) = status(&lab)?;
        assert_eq!(seen["agent"]["pid"], next.0.pid(), "nobody sees who has come {milliseconds} ms before");
        agent = next;
    }
    for command in ["run", "unload"] {
        let refused = lab.wsl_mirror(&[command])?;
        assert_eq!(refused.status.code(), Some(14), "{refused}");
    }
    assert_eq!(status(&lab)?.0["agent"]["pid"], agent.0.pid(), "who is refused takes nothing away");
    agent.end()?;
    ensure!(!lab.guest().enter(|| fs::exists("/run/wsl-mirror"))?, "something is left in /run");
    Ok(())
}

#[test]
fn what_a_killed_one_has_left_in_run_is_taken_away_by_unload() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    Agent::start(&lab, "steering loopback0")?.kill()?;
    ensure!(lab.guest().enter(|| fs::exists("/run/wsl-mirror"))?, "it ended well");
    ok(&lab, &["unload"])?;
    ensure!(!lab.guest().enter(|| fs::exists("/run/wsl-mirror"))?, "something is left in /run");
    Ok(())
}

#[test]
fn what_fails_at_the_start_and_may_not_later_is_tried_again() -> Result<()> {
    let lab = Lab::builder().configuration("hook = \"cls_bpf\"\n").build()?;
    let (lab, _proxy) = proxied(lab)?;
    let manager = Manager::listen(&lab)?;
    // Where ours has to be, and of another protocol; it matches nothing.
    let theirs = "dev loopback0 ingress prio 1";
    let filter = "protocol ip bpf bytecode '1,6 0 0 0' flowid 1:1";
    sh(&lab, &format!("tc qdisc add dev loopback0 clsact; tc filter add {theirs} {filter}"))?;
    let mut command = lab.wsl_mirror_command(&["run"])?;
    let agent = Agent::started(command.env("NOTIFY_SOCKET", socket()), "somebody else has a tc filter")?;
    manager.waits_for("READY=1")?;
    let (report, _) = status(&lab)?;
    assert_eq!(report["agent"]["state"], "failing", "{report}");
    sh(&lab, &format!("tc filter del {theirs}"))?;
    agent.says("steering loopback0")?;
    assert!(answers(&lab, 8080));
    Ok(())
}

#[test]
fn it_ends_at_once_although_another_one_is_at_work() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    let held = lab.guest().enter(|| File::options().write(true).open("/sys/bus/platform/drivers_probe"))?;
    // The agent has it for some milliseconds at a time.
    soon("the lock", || Ok(flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok()))?;
    agent.0.signal(Signal::HUP)?;
    agent.says("waiting for another wsl-mirror to finish")?;
    agent.0.signal(Signal::TERM)?;
    agent.0.finish(Duration::from_secs(1))?.success()?;
    assert!(answers(&lab, 8080));
    Ok(())
}

#[test]
fn a_hook_that_somebody_detaches_is_attached_again() -> Result<()> {
    let (lab, mut proxy) = proxied(Lab::builder().build()?)?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    sh(
        &lab,
        "for hook in post_bind4 post_bind6; do bpftool link detach pinned /sys/fs/bpf/wsl-mirror/v1/link_$hook; done",
    )?;
    proxy.serve("0.0.0.0:8086")?;
    // On a slow machine half a minute may be over.
    assert!(pace::is_emulated() || !answers(&lab, 8086), "it did pass a hook");
    // Nothing tells of it: it is looked for twice a minute, and when the agent is told to look.
    agent.0.signal(Signal::HUP)?;
    soon("it to be steered", || Ok(answers(&lab, 8086)))?;
    proxy.serve("0.0.0.0:8087")?;
    assert!(answers(&lab, 8087), "there is no hook");
    Ok(())
}

#[test]
fn a_dry_run_beside_an_agent_prints_what_that_would_do() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    let _agent = Agent::start(&lab, "steering loopback0")?;
    assert_eq!(ok(&lab, &["run", "--dry-run"])?, "nothing: everything is as it should be\n");
    let refused = lab.wsl_mirror(&["run", "--dry-run", "--cgroup", "/proc"])?;
    assert_eq!(refused.status.code(), Some(6), "{refused}");
    let other = lab.another_distribution()?;
    let plan = lab.wsl_mirror_in(&other, &["run", "--dry-run"])?.success()?.stdout;
    ensure!(plan.starts_with("stand aside") && plan.lines().count() == 1, "{plan}");
    Ok(())
}

#[test]
fn a_dry_run_prints_the_plan_and_changes_nothing() -> Result<()> {
    let lab = Lab::builder().loopback0(false).build()?;
    let plan = ok(&lab, &["run", "--dry-run"])?;
    for step in
        ["load the program", "attach wsl_mirror_bd4", "wait for loopback0, and attach the program to it"]
    {
        ensure!(plan.contains(step), "no '{step}' in:\n{plan}");
    }
    assert_eq!(status(&lab)?.1, 3);
    lab.add_loopback0()?;
    let plan = ok(&lab, &["run", "--dry-run"])?;
    ensure!(plan.contains("add the policy rule") && !plan.contains("wait for"), "{plan}");
    assert_eq!(status(&lab)?.1, 3);
    Ok(())
}

/// systemd's end of `sd_notify`.
struct Manager(UnixDatagram);

impl Manager {
    /// In the guest, where the agent finds it at [`SOCKET`].
    fn listen(lab: &Lab) -> Result<Self> {
        let socket = lab.guest().enter(|| UnixDatagram::bind(socket()))?;
        socket.set_read_timeout(Some(pace::limit(LIMIT)))?;
        Ok(Self(socket))
    }

    /// The next message.
    fn hears(&self) -> Result<String> {
        let mut message = [0; 4096];
        let length = self.0.recv(&mut message).context("not a word from the agent")?;
        Ok(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    /// Messages until one that begins like this.
    fn waits_for(&self, words: &str) -> Result<String> {
        loop {
            let heard = self.hears()?;
            if heard.contains(words) {
                return Ok(heard);
            }
        }
    }
}

fn socket() -> String {
    format!("{SCRATCH}/notify")
}

#[test]
fn systemd_hears_that_it_is_ready_how_it_goes_and_that_it_is_alive() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().loopback0(false).build()?)?;
    let manager = Manager::listen(&lab)?;
    let mut command = lab.wsl_mirror_wrapped(&["sh", "-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"], &["run"])?;
    command.env("NOTIFY_SOCKET", socket()).env("WATCHDOG_USEC", "400000");
    let agent = Agent::started(&mut command, "waiting for loopback0")?;
    manager.waits_for("STATUS=waiting for loopback0")?;
    // Ready although it never came: nothing has to wait for us.
    manager.waits_for("READY=1")?;
    lab.add_loopback0()?;
    manager.waits_for("STATUS=steering loopback0")?;
    manager.waits_for("WATCHDOG=1")?;
    manager.waits_for("WATCHDOG=1")?;
    lab.guest().enter(|| fs::write("/etc/wsl-mirror.toml", "nonsense"))?;
    manager.waits_for("is not valid")?;
    agent.0.signal(Signal::HUP)?;
    let reloading = manager.waits_for("RELOADING=1")?;
    ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.waits_for("READY=1")?;
    agent.0.signal(Signal::TERM)?;
    manager.waits_for("STOPPING=1")?;
    agent.0.finish(LIMIT)?.success()?;
    Ok(())
}

#[test]
fn a_listener_that_passed_no_hook_gets_its_tag() -> Result<()> {
    let (lab, mut proxy) = proxied(Lab::builder().build()?)?;
    // In a cgroup that is not watched the hooks do not see it.
    let watched = lab.group("watched")?.display().to_string();
    let mut command = lab.wsl_mirror_command(&["run", "--cgroup", &watched])?;
    let agent = Agent::started(&mut command, "steering loopback0")?;
    proxy.serve("0.0.0.0:8085")?;
    assert!(!answers(&lab, 8085), "it did pass a hook");
    // It is looked for twice a minute, and when the agent is told to look.
    agent.0.signal(Signal::HUP)?;
    soon("it to be steered", || Ok(answers(&lab, 8085)))
}
