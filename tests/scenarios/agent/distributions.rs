//! Several distributions: one network namespace, and for each its own bpffs.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use wsl_mirror_lab::{Lab, Namespace, Sockets};

use crate::guest::{Agent, answers, delivery, ok, on_hook, proxied, soon, status};

/// Two distributions with this configuration; in the first one a docker-proxy of ours.
fn two_of_them(configuration: &str) -> Result<(Lab, Sockets, Namespace)> {
    let (lab, proxy) = proxied(Lab::builder().configuration(configuration).build()?)?;
    let other = another(&lab, configuration)?;
    Ok((lab, proxy, other))
}

/// One more of them.
fn another(lab: &Lab, configuration: &str) -> Result<Namespace> {
    let other = lab.another_distribution()?;
    other.enter(|| fs::write("/etc/wsl-mirror.toml", configuration))?;
    Ok(other)
}

/// What happens to a distribution when it is terminated: its processes end, and so does its bpffs.
fn terminate(other: &Namespace) -> Result<()> {
    other.run("umount", ["/sys/fs/bpf"]).map(drop)
}

#[test]
fn a_second_distribution_sees_that_it_is_steered_already_and_stands_aside() -> Result<()> {
    for configuration in ["", "hook = \"cls_bpf\"\n"] {
        let (lab, _proxy, other) = two_of_them(configuration)?;
        let agent = Agent::start(&lab, "steering loopback0")?;
        let (first, _) = status(&lab)?;
        let machine = delivery(&lab)?;

        let load = lab.wsl_mirror_in(&other, &["load"])?;
        assert_eq!(load.status.code(), Some(20), "{load}");
        ensure!(load.stderr.contains("steered already, by wsl-mirror of another distribution"), "{load}");
        let (seen, code) = lab.status_in(&other)?;
        assert_eq!(
            (seen["loaded"].as_bool(), seen["steering"].as_bool(), code),
            (Some(false), Some(true), 0)
        );
        assert_eq!(seen["elsewhere"][0]["program"], first["program"]["id"]);
        assert_eq!(seen["elsewhere"][0]["interface"], "loopback0");
        let text = lab.wsl_mirror_in(&other, &["status"])?.stdout;
        ensure!(text.contains("from another distribution") && !text.contains("not loaded"), "{text}");

        let second = Agent::started(&mut lab.wsl_mirror_command_in(&other, &["run"])?, "standing aside")?;
        lab.recreate_loopback0()?;
        soon("it to be steered", || Ok(status(&lab)?.1 == 0))?;
        assert_eq!(on_hook_of(&lab, configuration)?, 1, "they fight");
        assert_eq!(status(&lab)?.0["attachment"], "alive", "the one that had it has it again");
        assert!(answers(&lab, 8080));
        ensure!(second.0.output().lines().count() <= 3, "{}", second.0.output());
        let ended = second.end()?;
        ensure!(!ended.contains("failed"), "{ended}");
        agent.end()?;
        soon("the machine as it was", || Ok(delivery(&lab)? == machine))?;
        ok(&lab, &["unload"])?;
        assert_eq!(lab.status_in(&other)?.1, 3);
    }
    Ok(())
}

fn on_hook_of(lab: &Lab, configuration: &str) -> Result<usize> {
    if configuration.is_empty() {
        return on_hook(lab);
    }
    lab.filters()
}

#[test]
fn who_stands_aside_does_not_wait_with_a_file_that_does_not_fit_this_machine() -> Result<()> {
    let (lab, _proxy, other) = two_of_them("")?;
    let _first = Agent::start(&lab, "steering loopback0")?;
    let second = Agent::started(&mut lab.wsl_mirror_command_in(&other, &["run"])?, "standing aside")?;
    other.enter(|| fs::write("/etc/wsl-mirror.toml", "mark = 0x1\n"))?;
    second.says("what was said before stays in force")?;
    let (seen, _) = lab.status_in(&other)?;
    ensure!(seen["agent"]["config_error"].as_str().is_some_and(|error| error.contains("in use")), "{seen}");
    assert_eq!(seen["agent"]["state"], "aside");
    Ok(())
}

#[test]
fn when_the_distribution_that_steers_is_terminated_the_one_that_waits_takes_over() -> Result<()> {
    for configuration in ["", "hook = \"cls_bpf\"\n"] {
        let (lab, _proxy, other) = two_of_them(configuration)?;
        let first = Agent::started(&mut lab.wsl_mirror_command_in(&other, &["run"])?, "steering loopback0")?;
        let machine = delivery(&lab)?;
        let second = Agent::start(&lab, "standing aside")?;
        first.kill()?;
        terminate(&other)?;
        assert_eq!(delivery(&lab)?, machine, "nobody has taken away what belongs to the network");
        second.says("steering loopback0").with_context(|| format!("{configuration:?}"))?;
        assert_eq!(status(&lab)?.1, 0);
        assert_eq!(delivery(&lab)?, machine, "adopted");
        assert_eq!(on_hook_of(&lab, configuration)?, 1);
        // A listener that was there all the time.
        assert!(answers(&lab, 8080));
        second.end()?;
        ok(&lab, &["unload"])?;
        ensure!(!delivery(&lab)?.contains("wsl-mirror"), "nothing is left");
    }
    Ok(())
}

#[test]
fn a_filter_that_a_terminated_distribution_left_is_taken_over_or_taken_away() -> Result<()> {
    let configuration = "hook = \"cls_bpf\"\n";
    let (lab, _proxy) = proxied(Lab::builder().configuration(configuration).build()?)?;
    let before = delivery(&lab)?;
    for take_over in [true, false] {
        let other = another(&lab, configuration)?;
        lab.wsl_mirror_in(&other, &["load"])?.success()?;
        terminate(&other)?;
        assert_eq!(on_hook_of(&lab, configuration)?, 1, "a filter outlives its pins");
        // The hooks on the cgroup go a little later.
        soon("its hooks to be gone", || Ok(status(&lab)?.0["left_behind"].is_array()))?;
        if take_over {
            ok(&lab, &["load"])?;
            assert!(answers(&lab, 8080));
        }
        ok(&lab, &["unload"])?;
        assert_eq!(on_hook_of(&lab, configuration)?, 0);
        assert_eq!(delivery(&lab)?, before);
    }
    Ok(())
}
