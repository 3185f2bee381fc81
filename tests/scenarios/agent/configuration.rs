//! The configuration, changed under the agent.

use std::fs;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use wsl_mirror_lab::{Lab, SCRATCH};

use crate::guest::{Agent, answers, delivery, has_tcx, ok, proxied, sh, soon, status};

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

/// Why the file is not in force, according to the agent.
fn config_error(lab: &Lab) -> Result<String> {
    Ok(status(lab)?.0["agent"]["config_error"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_file_that_does_not_fit_this_machine_is_not_in_force_and_all_is_followed_as_before() -> Result<()> {
    let (lab, mut proxy) = proxied(Lab::builder().build()?)?;
    proxy.serve("0.0.0.0:8081")?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    let machine = delivery(&lab)?;
    let mut files = vec![("mark = 0x1\n", "in use"), ("interface = \"eth0\"\n", "steers loopback0 already")];
    if has_tcx(&lab)? {
        files.push(("hook = \"cls_bpf\"\n", "attached to loopback0 by tcx already"));
    } else {
        files.push(("hook = \"tcx\"\n", "this kernel has no tcx"));
    }
    for (text, why) in files {
        say(&lab, &format!("exempt = [8081]\n{text}"))?;
        soon(&format!("`{text}` to be refused"), || Ok(config_error(&lab)?.contains(why)))?;
        agent.says("what was said before stays in force")?;
        assert_eq!(status(&lab)?.0["agent"]["state"], "steering", "{text}");
        assert!(answers(&lab, 8081), "nothing of it is in force: {text}");
        // What is in force is looked after.
        lab.recreate_loopback0()?;
        soon("the new one to be steered", || Ok(status(&lab)?.1 == 0))?;
        assert!(answers(&lab, 8080), "{text}");
        sh(&lab, "ip rule flush protocol 119; echo 0 > /proc/sys/net/ipv4/conf/lo/route_localnet")?;
        soon("rule and sysctls to come back", || Ok(delivery(&lab)? == machine))?;
        assert_ne!(config_error(&lab)?, "", "{text}");
    }
    say(&lab, "exempt = [8081]\n")?;
    soon("8081 to be exempt", || Ok(exempt(&lab)?.contains("8081")))?;
    assert_eq!(config_error(&lab)?, "");
    Ok(())
}

#[test]
fn a_file_that_did_not_fit_this_machine_is_in_force_once_it_does() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    sh(&lab, "nft 'add table inet their; add chain inet their c; add rule inet their c meta mark set 0x80'")?;
    say(&lab, "mark = 0x80\n")?;
    soon("it to be refused", || Ok(config_error(&lab)?.contains("in use")))?;
    assert_eq!(status(&lab)?.0["mark"], 0x1000);
    sh(&lab, "nft delete table inet their")?;
    // It would be seen within half a minute, too.
    agent.0.signal(Signal::HUP)?;
    soon("the mark", || Ok(status(&lab)?.0["mark"] == 0x80))?;
    assert_eq!(config_error(&lab)?, "");
    assert!(answers(&lab, 8080));
    Ok(())
}

#[test]
fn a_mark_of_ones_own_that_somebody_begins_to_use_is_gone_on_with() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().configuration("mark = 0x2000\n").build()?)?;
    let agent = Agent::start(&lab, "steering loopback0")?;
    let machine = delivery(&lab)?;
    sh(
        &lab,
        "nft 'add table inet their; add chain inet their c; add rule inet their c meta mark set 0x2000'",
    )?;
    agent.says("others use bits of our mark 0x2000, too: nft inet their")?;
    let (report, code) = status(&lab)?;
    assert_eq!((report["agent"]["state"].as_str(), code), (Some("steering"), 0));
    ensure!(report["agent"]["warnings"][0].as_str().is_some_and(|said| said.contains("0x2000")), "{report}");
    ensure!(ok(&lab, &["status"])?.contains("others use bits of our mark"), "people too");
    lab.recreate_loopback0()?;
    soon("the new one to be steered", || Ok(status(&lab)?.1 == 0))?;
    assert!(answers(&lab, 8080));
    sh(&lab, "ip rule flush protocol 119")?;
    soon("the rule to come back", || Ok(delivery(&lab)? == machine))?;
    sh(&lab, "nft delete table inet their")?;
    soon("nothing to warn of", || Ok(status(&lab)?.0["agent"]["warnings"].is_null()))?;
    Ok(())
}

#[test]
fn a_link_that_is_put_where_no_file_was_is_in_force_at_once() -> Result<()> {
    let (lab, _proxy) = proxied(Lab::builder().build()?)?;
    let _agent = Agent::start(&lab, "steering loopback0")?;
    let elsewhere = format!("{SCRATCH}/elsewhere.toml");
    lab.guest().enter(|| fs::write(&elsewhere, "exempt = [8080]\n"))?;
    sh(&lab, &format!("ln -s {elsewhere} {PATH}"))?;
    soon("8080 to be exempt", || Ok(exempt(&lab)?.contains("8080")))
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
