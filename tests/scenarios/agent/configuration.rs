//! The configuration, changed under the agent.

use std::fs;

use anyhow::Result;
use rustix::process::Signal;
use wsl_mirror_lab::{Lab, SCRATCH};

use crate::guest::{Agent, answers, ok, proxied, sh, soon, status};

const PATH: &str = "/etc/wsl-mirror.toml";

/// Has the guest's configuration say this, as an editor does: a new file in the place of the old one.
fn say(lab: &Lab, text: &str) -> Result<()> {
    let new = format!("{PATH}.new");
    lab.guest().enter(|| fs::write(&new, text).and_then(|()| fs::rename(&new, PATH)))?;
    Ok(())
}

fn exempt(lab: &Lab) -> Result<String> {
    ok(lab, &["exempt", "list"])
}

#[test]
fn a_changed_file_is_in_force_at_once_and_a_bad_one_never() -> Result<()> {
    let (lab, mut proxy) = proxied(Lab::builder().build()?)?;
    proxy.serve("0.0.0.0:8081")?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    ok(&lab, &["exempt", "add", "8081/tcp"])?;
    say(&lab, "exempt = [8080]\n")?;
    soon("8080 to be exempt", || Ok(exempt(&lab)?.contains("8080")))?;
    assert!(!answers(&lab, 8080));

    say(&lab, "exempt = [8080]\nexemt = []\n")?;
    agent.says("line 2, column 1")?;
    agent.says("what was said before stays in force")?;
    let error = || Ok::<_, anyhow::Error>(status(&lab)?.0["agent"]["config_error"].clone());
    soon("the error in the status", || Ok(error()?.as_str().is_some_and(|error| error.contains("exemt"))))?;
    let text = ok(&lab, &["status"])?;
    assert!(text.contains("not in force") && text.contains("line 2, column 1"), "{text}");
    assert!(exempt(&lab)?.contains("8080") && !answers(&lab, 8080));

    // Written in place this time.
    lab.guest().enter(|| fs::write(PATH, "default = \"pass\"\n"))?;
    agent.says("the configuration is valid again")?;
    soon("8080 not to be exempt", || Ok(!exempt(&lab)?.contains("8080")))?;
    assert!(answers(&lab, 8080));
    assert_eq!(error()?, serde_json::Value::Null);
    assert!(!answers(&lab, 8081), "what was said by hand stays");

    say(&lab, "exempt = [8080]\n")?;
    soon("8080 to be exempt", || Ok(exempt(&lab)?.contains("8080")))?;
    sh(&lab, &format!("rm {PATH}"))?;
    soon("the defaults", || Ok(!exempt(&lab)?.contains("8080")))?;
    Ok(())
}

#[test]
fn what_needs_another_program_gets_one() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    let _agent = Agent::start(&lab, "steering loopback0")?;
    let before = status(&lab)?.0["program"]["id"].clone();
    say(&lab, "log = \"debug\"\n")?;
    soon("another program", || Ok(status(&lab)?.0["program"]["id"] != before))?;
    assert!(answers(&lab, 8080));
    Ok(())
}

#[test]
fn a_hangup_reads_a_file_that_nobody_saw_change() -> Result<()> {
    let lab = Lab::builder().build()?;
    let (lab, _proxy) = proxied(lab)?;
    // A link to a file elsewhere: its folder is not watched.
    let elsewhere = format!("{SCRATCH}/elsewhere.toml");
    lab.guest()
        .enter(|| fs::write(&elsewhere, "").and_then(|()| std::os::unix::fs::symlink(&elsewhere, PATH)))?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    lab.guest().enter(|| fs::write(&elsewhere, "exempt = [8080]\n"))?;
    agent.0.signal(Signal::HUP)?;
    soon("8080 to be exempt", || Ok(exempt(&lab)?.contains("8080")))?;
    Ok(())
}

#[test]
fn a_bad_file_at_the_start_is_refused_and_what_is_loaded_goes_on() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    ok(&lab, &["load"])?;
    say(&lab, "mark = 0\n")?;
    let finished = lab.wsl_mirror(&["run"])?;
    assert_eq!(finished.status.code(), Some(6), "{finished}");
    assert!(answers(&lab, 8080));
    Ok(())
}
