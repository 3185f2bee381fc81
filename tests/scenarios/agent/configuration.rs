//! The configuration, changed under the agent.

use std::fs;

use rustix::process::Signal;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::{OrPanic as _, has_tcx, ok, sh, status},
};

use crate::guest::{Agent, answers, proxied, soon};

const PATH: &str = "/etc/wsl-mirror.toml";

/// Has the guest's configuration say this, as an editor does: a new file in the place of the old one.
#[track_caller]
fn say(lab: &Lab, text: &str) {
    let new = format!("{PATH}.new");
    lab.guest().enter(|| fs::write(&new, text).and_then(|()| fs::rename(&new, PATH))).or_panic();
}

#[track_caller]
fn exemptions(lab: &Lab) -> String {
    ok(lab, &["exempt", "list"]).stdout
}

#[test]
fn a_changed_file_is_in_force_at_once_and_a_bad_one_never() {
    let (lab, mut proxy) = proxied(Lab::builder().build().unwrap());
    proxy.serve("0.0.0.0:8081").unwrap();
    let agent = Agent::start(&lab, "steering loopback0");
    ok(&lab, &["exempt", "add", "8081/tcp"]);
    say(&lab, "exempt = [8080]\n");
    soon("8080 to be exempt", || exemptions(&lab).contains("8080"));
    assert!(!answers(&lab, 8080));

    say(&lab, "exempt = [8080]\nexemt = []\n");
    agent.says("line 2, column 1");
    agent.says("what was said before stays in force");
    let error = || status(&lab).0["agent"]["config_error"].clone();
    soon("the error in the status", || error().as_str().is_some_and(|error| error.contains("exemt")));
    let text = ok(&lab, &["status"]).stdout;
    assert!(text.contains("not in force") && text.contains("line 2, column 1"), "{text}");
    assert!(exemptions(&lab).contains("8080") && !answers(&lab, 8080));

    // Written in place this time.
    lab.guest().enter(|| fs::write(PATH, "default = \"pass\"\n")).unwrap();
    agent.says("the configuration is valid again");
    soon("8080 not to be exempt", || !exemptions(&lab).contains("8080"));
    assert!(answers(&lab, 8080));
    assert_eq!(error(), serde_json::Value::Null);
    assert!(!answers(&lab, 8081), "what was said by hand stays");

    say(&lab, "exempt = [8080]\n");
    soon("8080 to be exempt", || exemptions(&lab).contains("8080"));
    sh(&lab, &format!("rm {PATH}"));
    soon("the defaults", || !exemptions(&lab).contains("8080"));
}

/// Why the file is not in force, according to the agent.
#[track_caller]
fn config_error(lab: &Lab) -> String {
    status(lab).0["agent"]["config_error"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_file_that_does_not_fit_this_machine_is_not_in_force_and_all_is_followed_as_before() {
    let (lab, mut proxy) = proxied(Lab::builder().build().unwrap());
    proxy.serve("0.0.0.0:8081").unwrap();
    let agent = Agent::start(&lab, "steering loopback0");
    let mut files = vec![
        ("alias = \"127.1.2.3\"\n", "flows are carried by 127.119.0.1"),
        ("interface = \"eth0\"\n", "steers loopback0 already"),
    ];
    if has_tcx(&lab) {
        files.push(("hook = \"cls_bpf\"\n", "attached to loopback0 by tcx already"));
    } else {
        files.push(("hook = \"tcx\"\n", "this kernel has no tcx"));
    }
    for (text, why) in files {
        say(&lab, &format!("exempt = [8081]\n{text}"));
        soon(&format!("`{text}` to be refused"), || config_error(&lab).contains(why));
        agent.says("what was said before stays in force");
        assert_eq!(status(&lab).0["agent"]["state"], "steering", "{text}");
        assert!(answers(&lab, 8081), "nothing of it is in force: {text}");
        // What is in force is looked after.
        lab.recreate_loopback0().unwrap();
        soon("the new one to be steered", || status(&lab).1 == 0);
        assert!(answers(&lab, 8080), "{text}");
        assert_ne!(config_error(&lab), "", "{text}");
    }
    say(&lab, "exempt = [8081]\n");
    soon("8081 to be exempt", || exemptions(&lab).contains("8081"));
    assert_eq!(config_error(&lab), "");
}

#[test]
fn a_file_that_did_not_fit_this_machine_is_in_force_once_it_does() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    say(&lab, "interface = \"eth0\"\nmark = 0x40\n");
    soon("it to be refused", || config_error(&lab).contains("steers loopback0 already"));
    assert_eq!(status(&lab).0["mark"], 0x80);
    say(&lab, "mark = 0x40\n");
    soon("the mark", || status(&lab).0["mark"] == 0x40);
    assert_eq!(config_error(&lab), "");
    assert!(answers(&lab, 8080), "{}", agent.0.output());
}

#[test]
fn a_link_that_is_put_where_no_file_was_is_in_force_at_once() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    let elsewhere = format!("{SCRATCH}/elsewhere.toml");
    lab.guest().enter(|| fs::write(&elsewhere, "exempt = [8080]\n")).unwrap();
    sh(&lab, &format!("ln -s {elsewhere} {PATH}"));
    soon("8080 to be exempt", || exemptions(&lab).contains("8080"));
}

#[test]
fn what_needs_another_program_gets_one() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    let before = status(&lab).0["program"]["id"].clone();
    say(&lab, "log = \"debug\"\n");
    soon("another program", || status(&lab).0["program"]["id"] != before);
    assert!(answers(&lab, 8080));
}

#[test]
fn a_hangup_reads_a_file_that_nobody_saw_change() {
    let lab = Lab::builder().build().unwrap();
    let (lab, _proxy) = proxied(lab);
    // A link to a file elsewhere: its folder is not watched.
    let elsewhere = format!("{SCRATCH}/elsewhere.toml");
    lab.guest()
        .enter(|| fs::write(&elsewhere, "").and_then(|()| std::os::unix::fs::symlink(&elsewhere, PATH)))
        .unwrap();
    let agent = Agent::start(&lab, "steering loopback0");
    lab.guest().enter(|| fs::write(&elsewhere, "exempt = [8080]\n")).unwrap();
    agent.0.signal(Signal::HUP).unwrap();
    soon("8080 to be exempt", || exemptions(&lab).contains("8080"));
}

#[test]
fn a_bad_file_at_the_start_is_refused_and_what_is_loaded_goes_on() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    ok(&lab, &["load"]);
    say(&lab, "mark = 0x1ff\n");
    let finished = lab.wsl_mirror(&["run"]).unwrap();
    assert_eq!(finished.status.code(), Some(6), "{finished}");
    assert!(answers(&lab, 8080));
}
