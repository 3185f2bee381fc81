//! How the agent begins and ends, and what it tells systemd.

use std::{fs, os::unix::net::UnixDatagram};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use wsl_mirror_lab::{Lab, SCRATCH};

use crate::guest::{Agent, LIMIT, answers, ok, proxied, soon, status};

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
        socket.set_read_timeout(Some(wsl_mirror_lab::pace::limit(LIMIT)))?;
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
    let inner = lab.wsl_mirror_command(&["run"])?;
    let mut command = lab.guest().command("sh");
    command.args(["-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
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
