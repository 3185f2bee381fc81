//! How the agent begins and ends, and what it tells systemd.

use std::{
    fs::{self, File},
    os::unix::net::UnixDatagram,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::{OrPanic as _, ok, ok_in, sh, status},
    pace, pins,
    process::Background,
};

use crate::guest::{Agent, LIMIT, answers, proxied, soon};

#[test]
fn it_ends_well_and_everything_goes_on() {
    let (lab, mut proxy) = proxied(Lab::builder().build().unwrap());
    for signal in [Signal::TERM, Signal::INT] {
        let agent = Agent::start(&lab, "steering loopback0");
        agent.0.signal(signal).unwrap();
        agent.0.finish(LIMIT).unwrap().success().unwrap();
        assert!(answers(&lab, 8080));
    }
    proxy.serve("0.0.0.0:8081").unwrap();
    assert!(answers(&lab, 8081), "what comes later is steered too");
    let (report, code) = status(&lab);
    assert_eq!((report["agent"].is_null(), code), (true, 0));
    assert!(!lab.guest().enter(|| fs::exists("/run/wsl-mirror")).unwrap(), "something is left in /run");
    ok(&lab, &["unload"]);
}

#[test]
fn after_a_kill_the_next_one_takes_up_everything() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    let (before, _) = status(&lab);
    assert_eq!(before["agent"]["pid"], agent.0.pid());
    agent.kill();
    assert!(answers(&lab, 8080));
    let (report, code) = status(&lab);
    assert_eq!((report["agent"].is_null(), code), (true, 0), "a report of somebody dead is none");
    // What changes while there is none, the next one finds.
    lab.recreate_loopback0().unwrap();
    assert!(!answers(&lab, 8080));
    let _next = Agent::start(&lab, "steering loopback0");
    assert!(answers(&lab, 8080));
}

#[test]
fn there_is_one_in_a_distribution_and_unload_says_who_is_in_its_way() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    for (command, words) in [("run", "is at work in this distribution already"), ("unload", "end it first")] {
        let refused = lab.wsl_mirror(&[command]).unwrap();
        assert_eq!(refused.status.code(), Some(14), "{refused}");
        assert!(
            refused.stderr.contains(words) && refused.stderr.contains(&agent.0.pid().to_string()),
            "{refused}"
        );
    }
    assert!(answers(&lab, 8080));
    // A load beside it is no harm.
    ok(&lab, &["load"]);
    assert!(answers(&lab, 8080));
    agent.end();
    ok(&lab, &["unload"]);
    assert!(!answers(&lab, 8080), "the trap is no trap");
}

#[test]
fn one_that_starts_while_another_ends_is_seen_and_keeps_a_third_out() {
    let (lab, _proxy) = proxied(Lab::builder().loopback0(false).build().unwrap());
    let mut agent = Agent::start(&lab, "waiting for loopback0");
    // The new one comes to the lock before, while and after the old one leaves it.
    for milliseconds in [0, 5, 10, 20, 40, 80] {
        let next = Agent(Background::spawn(&mut lab.wsl_mirror_command(&["run"]).unwrap()).unwrap());
        thread::sleep(Duration::from_millis(milliseconds));
        agent.end();
        next.says("waiting for loopback0");
        let (seen, _) = status(&lab);
        assert_eq!(seen["agent"]["pid"], next.0.pid(), "nobody sees who has come {milliseconds} ms before");
        agent = next;
    }
    for command in ["run", "unload"] {
        let refused = lab.wsl_mirror(&[command]).unwrap();
        assert_eq!(refused.status.code(), Some(14), "{refused}");
    }
    assert_eq!(status(&lab).0["agent"]["pid"], agent.0.pid(), "who is refused takes nothing away");
    agent.end();
    assert!(!lab.guest().enter(|| fs::exists("/run/wsl-mirror")).unwrap(), "something is left in /run");
}

#[test]
fn what_a_killed_one_has_left_in_run_is_taken_away_by_unload() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    Agent::start(&lab, "steering loopback0").kill();
    assert!(lab.guest().enter(|| fs::exists("/run/wsl-mirror")).unwrap(), "it ended well");
    ok(&lab, &["unload"]);
    assert!(!lab.guest().enter(|| fs::exists("/run/wsl-mirror")).unwrap(), "something is left in /run");
}

#[test]
fn what_fails_at_the_start_and_may_not_later_is_tried_again() {
    let lab = Lab::builder().configuration("hook = \"cls_bpf\"\n").build().unwrap();
    let (lab, _proxy) = proxied(lab);
    let manager = Manager::listen(&lab);
    // Where ours has to be, and of another protocol; it matches nothing.
    let theirs = "dev loopback0 ingress prio 1";
    let filter = "protocol ip bpf bytecode '1,6 0 0 0' flowid 1:1";
    sh(&lab, &format!("tc qdisc add dev loopback0 clsact; tc filter add {theirs} {filter}"));
    let mut command = lab.wsl_mirror_command(&["run"]).unwrap();
    let agent = Agent::started(command.env("NOTIFY_SOCKET", socket()), "somebody else has a tc filter");
    manager.waits_for("READY=1");
    let (report, _) = status(&lab);
    assert_eq!(report["agent"]["state"], "failing", "{report}");
    sh(&lab, &format!("tc filter del {theirs}"));
    agent.says("steering loopback0");
    assert!(answers(&lab, 8080));
}

#[test]
fn it_ends_at_once_although_another_one_is_at_work() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    let held =
        lab.guest().enter(|| File::options().write(true).open("/sys/bus/platform/drivers_probe")).unwrap();
    // The agent has it for some milliseconds at a time.
    soon("the lock", || flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok());
    agent.0.signal(Signal::HUP).unwrap();
    agent.says("waiting for another wsl-mirror to finish");
    agent.0.signal(Signal::TERM).unwrap();
    agent.0.finish(Duration::from_secs(1)).unwrap().success().unwrap();
    assert!(answers(&lab, 8080));
}

#[test]
fn a_hook_that_somebody_detaches_is_attached_again() {
    let (lab, mut proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    sh(
        &lab,
        &format!(
            "for hook in post_bind4 post_bind6; do bpftool link detach pinned {}_$hook; done",
            pins::path("link")
        ),
    );
    proxy.serve("0.0.0.0:8086").unwrap();
    // On a slow machine half a minute may be over.
    assert!(pace::is_emulated() || !answers(&lab, 8086), "it did pass a hook");
    // Nothing tells of it: it is looked for twice a minute, and when the agent is told to look.
    agent.0.signal(Signal::HUP).unwrap();
    soon("it to be steered", || answers(&lab, 8086));
    proxy.serve("0.0.0.0:8087").unwrap();
    assert!(answers(&lab, 8087), "there is no hook");
}

#[test]
fn a_dry_run_beside_an_agent_prints_what_that_would_do() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    assert_eq!(ok(&lab, &["run", "--dry-run"]).stdout, "nothing: everything is as it should be\n");
    let refused = lab.wsl_mirror(&["run", "--dry-run", "--cgroup", "/proc"]).unwrap();
    assert_eq!(refused.status.code(), Some(6), "{refused}");
    let other = lab.another_distribution().unwrap();
    let plan = ok_in(&lab, &other, &["run", "--dry-run"]).stdout;
    assert!(plan.starts_with("stand aside") && plan.lines().count() == 1, "{plan}");
}

#[test]
fn a_dry_run_prints_the_plan_and_changes_nothing() {
    let lab = Lab::builder().loopback0(false).build().unwrap();
    let plan = ok(&lab, &["run", "--dry-run"]).stdout;
    for step in
        ["load the program", "attach wsl_mirror_bd4", "wait for loopback0, and attach the program to it"]
    {
        assert!(plan.contains(step), "no '{step}' in:\n{plan}");
    }
    assert_eq!(status(&lab).1, 3);
    lab.add_loopback0().unwrap();
    let plan = ok(&lab, &["run", "--dry-run"]).stdout;
    assert!(plan.contains("on egress") && !plan.contains("wait for"), "{plan}");
    assert_eq!(status(&lab).1, 3);
}

/// systemd's end of `sd_notify`.
struct Manager(UnixDatagram);

impl Manager {
    /// In the guest, where the agent finds it at [`SOCKET`].
    #[track_caller]
    fn listen(lab: &Lab) -> Self {
        let socket = lab.guest().enter(|| UnixDatagram::bind(socket())).or_panic();
        socket.set_read_timeout(Some(pace::limit(LIMIT))).or_panic();
        Self(socket)
    }

    /// The next message.
    #[track_caller]
    fn hears(&self) -> String {
        let mut message = [0; 4096];
        let length = self.0.recv(&mut message).context("not a word from the agent").or_panic();
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    /// Messages until one that begins like this.
    #[track_caller]
    fn waits_for(&self, words: &str) -> String {
        loop {
            let heard = self.hears();
            if heard.contains(words) {
                return heard;
            }
        }
    }
}

fn socket() -> String {
    format!("{SCRATCH}/notify")
}

#[test]
fn systemd_hears_that_it_is_ready_how_it_goes_and_that_it_is_alive() {
    let (lab, _proxy) = proxied(Lab::builder().loopback0(false).build().unwrap());
    let manager = Manager::listen(&lab);
    let mut command =
        lab.wsl_mirror_wrapped(&["sh", "-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"], &["run"]).unwrap();
    command.env("NOTIFY_SOCKET", socket()).env("WATCHDOG_USEC", "400000");
    let agent = Agent::started(&mut command, "waiting for loopback0");
    manager.waits_for("STATUS=waiting for loopback0");
    // Ready although it never came: nothing has to wait for us.
    manager.waits_for("READY=1");
    lab.add_loopback0().unwrap();
    manager.waits_for("STATUS=steering loopback0");
    manager.waits_for("WATCHDOG=1");
    manager.waits_for("WATCHDOG=1");
    lab.guest().enter(|| fs::write("/etc/wsl-mirror.toml", "nonsense")).unwrap();
    manager.waits_for("is not valid");
    agent.0.signal(Signal::HUP).unwrap();
    let reloading = manager.waits_for("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.waits_for("READY=1");
    agent.0.signal(Signal::TERM).unwrap();
    manager.waits_for("STOPPING=1");
    agent.0.finish(LIMIT).unwrap().success().unwrap();
}

#[test]
fn a_listener_that_passed_no_hook_gets_its_tag() {
    let (lab, mut proxy) = proxied(Lab::builder().build().unwrap());
    // In a cgroup that is not watched the hooks do not see it.
    let watched = lab.group("watched").unwrap().display().to_string();
    let mut command = lab.wsl_mirror_command(&["run", "--cgroup", &watched]).unwrap();
    let agent = Agent::started(&mut command, "steering loopback0");
    proxy.serve("0.0.0.0:8085").unwrap();
    assert!(!answers(&lab, 8085), "it did pass a hook");
    // It is looked for twice a minute, and when the agent is told to look.
    agent.0.signal(Signal::HUP).unwrap();
    soon("it to be steered", || answers(&lab, 8085));
}
