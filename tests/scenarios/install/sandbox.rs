//! What the unit leaves to the program is enough, and none of it too much: without systemd, as there is none in the lab
//! that runs.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;
use wsl_mirror_lab::{
    Lab, SCRATCH, Sockets,
    checks::OrPanic as _,
    checks::wrapped,
    pace,
    process::{COMMAND_LIMIT, Finished, run},
};

use crate::unit::{has_judge, values};

fn capabilities() -> Vec<String> {
    let all = values("CapabilityBoundingSet").join(" ");
    all.split_whitespace().map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect()
}

/// With these capabilities alone, as root, and without a way to more.
fn with_only(capabilities: &[String]) -> Vec<String> {
    let set = [&["-all".to_owned()], capabilities].concat().join(",+");
    vec!["setpriv".into(), format!("--bounding-set={set}"), "--no-new-privs".into()]
}

/// A guest in which a load has everything to do: a socket of a user's, another distribution's rules by both families of
/// tools, if this kernel has both.
struct World {
    lab: Lab,
    theirs: Sockets,
    legacy: bool,
}

impl World {
    #[track_caller]
    fn new() -> Self {
        let lab = Lab::builder().build().or_panic();
        let mut theirs =
            Sockets::start(&lab, lab.guest(), env!("CARGO_BIN_EXE_lab-sockets"), "theirs").or_panic();
        theirs.tell("user 1000").or_panic();
        theirs.serve("127.0.0.1:8080").or_panic();
        theirs.tell("leave-root 1000").or_panic();
        let legacy =
            run(lab.guest().command("iptables-legacy").args(["-t", "raw", "-N", "LAB"]), COMMAND_LIMIT)
                .is_ok_and(|made| made.status.success());
        Self { lab, theirs, legacy }
    }

    /// Loads with these capabilities; what is missing afterwards, if anything.
    #[track_caller]
    fn missing_after_load_with(&mut self, capabilities: &[String]) -> Option<String> {
        let loaded = wrapped(&self.lab, &with_only(capabilities), &["load"]);
        let missing = self.missing_after(&loaded, capabilities);
        self.lab.wsl_mirror(&["unload"]).or_panic().success().or_panic();
        missing
    }

    #[track_caller]
    fn missing_after(&mut self, loaded: &Finished, capabilities: &[String]) -> Option<String> {
        if !loaded.status.success() {
            return Some(loaded.stderr.trim().to_owned());
        }
        // It reads the packet filters as a load does, and says what it could not read.
        let status = wrapped(&self.lab, &with_only(capabilities), &["status", "--json"]);
        let Ok(status) = serde_json::from_str::<Value>(&status.stdout) else {
            return Some(status.stderr);
        };
        if status["carrying"]["state"] != "on" || status["carrying"]["unread"] != serde_json::json!([]) {
            return Some(status["carrying"].to_string());
        }
        // A socket without a tag is an answer, too.
        self.theirs.tell("user 1000").or_panic();
        let tag = self.theirs.tell("tag 127.0.0.1:8080");
        self.theirs.tell("leave-root 1000").or_panic();
        match tag {
            Ok(tag) if tag == "theirs 1000" => None,
            other => Some(format!("the user's socket has no tag: {other:?}")),
        }
    }
}

#[test]
fn the_units_capabilities_are_enough_and_each_is_needed() {
    let mut world = World::new();
    let all = capabilities();
    assert_eq!(world.missing_after_load_with(&all), None, "with {all:?}");
    for without in &all {
        if without == "net_raw" && !world.legacy {
            println!("SKIPPED: this kernel has no tables of iptables-legacy, which net_raw is there for");
            continue;
        }
        let others: Vec<String> = all.iter().filter(|name| *name != without).cloned().collect();
        let missing = world.missing_after_load_with(&others);
        println!("without {without}: {missing:?}");
        assert!(missing.is_some(), "{without} is not needed");
    }
}

/// The system calls that a filter like the unit's lets through.
#[track_caller]
fn allowed() -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    // These systemd allows in any case: a service has to be started, and to end.
    expand("@default", &mut allowed);
    allowed.extend(["execve", "exit", "exit_group", "rt_sigreturn", "brk", "mmap"].map(str::to_owned));
    for line in values("SystemCallFilter") {
        let (removed, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        let mut named = BTreeSet::new();
        for name in names.split_whitespace() {
            expand(name, &mut named);
        }
        if removed {
            allowed.retain(|name| !named.contains(name));
        } else {
            allowed.extend(named);
        }
    }
    allowed
}

#[track_caller]
fn expand(name: &str, into: &mut BTreeSet<String>) {
    if !name.starts_with('@') {
        into.insert(name.to_owned());
        return;
    }
    let listed =
        run(Command::new("systemd-analyze").args(["syscall-filter", name, "--no-pager"]), COMMAND_LIMIT);
    for line in listed.or_panic().success().or_panic().stdout.lines().skip(1).map(str::trim) {
        if !line.is_empty() && !line.starts_with('#') {
            expand(line, into);
        }
    }
}

#[test]
fn no_system_call_is_made_that_the_unit_forbids() {
    if !has_judge() {
        return;
    }
    if pace::is_emulated() {
        println!(
            "SKIPPED: the calls are the same on every kernel, and tracing them takes minutes in emulation"
        );
        return;
    }
    let allowed = allowed();
    // With somebody whose sockets are to be tagged.
    let world = World::new();
    let lab = &world.lab;
    let trace = format!("{SCRATCH}/trace");
    let strace = ["strace", "-f", "-qq", "-o", &trace, "-e", "signal=none"].map(str::to_owned);
    let mut used = BTreeSet::new();
    // Made anew, and replaced; and by the agent, until it is told to end.
    let for_a_while = ["timeout", "--preserve-status", "--signal=TERM", "4"].map(str::to_owned);
    let agent = [&strace[..], &for_a_while].concat();
    for (wrapper, command) in [(&strace[..], "load"), (&strace, "load"), (&agent, "run")] {
        wrapped(lab, wrapper, &[command]).success().unwrap();
        let text = lab.guest().enter(|| fs::read_to_string(&trace)).unwrap();
        // `1234  openat(…`, or `1234  <... futex resumed>`.
        let calls = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('('));
        used.extend(calls.map(|(name, _)| name.to_owned()));
    }
    assert!(used.contains("bpf") && used.contains("fsmount") && used.len() > 30, "{used:?}");
    let forbidden: Vec<_> = used.difference(&allowed).collect();
    assert!(forbidden.is_empty(), "the unit forbids {forbidden:?}");
    for named in ["bpf", "fsopen", "fsconfig", "fsmount", "pidfd_getfd"] {
        assert!(used.contains(named), "{named} is allowed and not used");
    }
    assert!(!allowed.contains("mount") && !allowed.contains("init_module"), "too much is allowed");
}
