//! Several distributions: one network namespace, and for each its own bpffs.

use std::fs;

use wsl_mirror_lab::{
    Lab, Namespace, Sockets,
    checks::{OrPanic as _, network, ok, ok_in, status, terminate},
};

use crate::guest::{Agent, answers, on_hook, proxied, soon};

/// Two distributions with this configuration; in the first one a docker-proxy of ours.
#[track_caller]
fn two_of_them(configuration: &str) -> (Lab, Sockets, Namespace) {
    let (lab, proxy) = proxied(Lab::builder().configuration(configuration).build().or_panic());
    let other = another(&lab, configuration);
    (lab, proxy, other)
}

/// One more of them.
#[track_caller]
fn another(lab: &Lab, configuration: &str) -> Namespace {
    let other = lab.another_distribution().or_panic();
    other.enter(|| fs::write("/etc/wsl-mirror.toml", configuration)).or_panic();
    other
}

#[test]
fn a_second_distribution_sees_that_it_is_steered_already_and_stands_aside() {
    for configuration in ["", "hook = \"cls_bpf\"\n"] {
        let (lab, _proxy, other) = two_of_them(configuration);
        let agent = Agent::start(&lab, "steering loopback0");
        let (first, _) = status(&lab);
        let machine = without_rules_on_lo(&network(lab.guest()));

        let load = lab.wsl_mirror_in(&other, &["load"]).unwrap();
        assert_eq!(load.status.code(), Some(20), "{load}");
        assert!(load.stderr.contains("steered already, by wsl-mirror of another distribution"), "{load}");
        let (seen, code) = lab.status_in(&other).unwrap();
        assert_eq!(
            (seen["loaded"].as_bool(), seen["steering"].as_bool(), code),
            (Some(false), Some(true), 0)
        );
        assert_eq!(seen["elsewhere"][0]["program"], first["program"]["id"]);
        assert_eq!(seen["elsewhere"][0]["interface"], "loopback0");
        let text = lab.wsl_mirror_in(&other, &["status"]).unwrap().stdout;
        assert!(text.contains("from another distribution") && !text.contains("not loaded"), "{text}");

        let second =
            Agent::started(&mut lab.wsl_mirror_command_in(&other, &["run"]).unwrap(), "standing aside");
        lab.recreate_loopback0().unwrap();
        soon("it to be steered", || status(&lab).1 == 0);
        assert_eq!(on_hook_of(&lab, configuration), 1, "they fight");
        assert_eq!(status(&lab).0["attachment"], "alive", "the one that had it has it again");
        assert!(answers(&lab, 8080));
        assert!(second.0.output().lines().count() <= 3, "{}", second.0.output());
        let ended = second.end();
        assert!(!ended.contains("failed"), "{ended}");
        agent.end();
        soon("the machine as it was", || without_rules_on_lo(&network(lab.guest())) == machine);
        ok(&lab, &["unload"]);
        assert_eq!(lab.status_in(&other).unwrap().1, 3);
    }
}

/// The network without the rules that keep connections on `lo`, which end with the agent.
fn without_rules_on_lo(network: &str) -> String {
    let lines =
        network.lines().filter(|line| !(line.contains(" to 127.0.0.1 ") && line.contains("proto 119")));
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn on_hook_of(lab: &Lab, configuration: &str) -> usize {
    if configuration.is_empty() {
        return on_hook(lab);
    }
    lab.filters().or_panic()
}

#[test]
fn who_stands_aside_does_not_wait_with_a_file_that_does_not_fit_this_machine() {
    let (lab, _proxy, other) = two_of_them("");
    let _first = Agent::start(&lab, "steering loopback0");
    let second = Agent::started(&mut lab.wsl_mirror_command_in(&other, &["run"]).unwrap(), "standing aside");
    other.enter(|| fs::write("/etc/wsl-mirror.toml", "mark = 0x1ff\n")).unwrap();
    second.says("what was said before stays in force");
    let (seen, _) = lab.status_in(&other).unwrap();
    assert!(
        seen["agent"]["config_error"].as_str().is_some_and(|error| error.contains("at most 8")),
        "{seen}"
    );
    assert_eq!(seen["agent"]["state"], "aside");
}

#[test]
fn when_the_distribution_that_steers_is_terminated_the_one_that_waits_takes_over() {
    for configuration in ["", "hook = \"cls_bpf\"\n"] {
        let (lab, _proxy, other) = two_of_them(configuration);
        let before = network(lab.guest());
        let first =
            Agent::started(&mut lab.wsl_mirror_command_in(&other, &["run"]).unwrap(), "steering loopback0");
        println!("configuration {configuration:?}");
        let machine = without_rules_on_lo(&network(lab.guest()));
        let second = Agent::start(&lab, "standing aside");
        first.kill();
        terminate(&other);
        let now = || without_rules_on_lo(&network(lab.guest()));
        assert_eq!(now(), machine, "nobody has changed what belongs to the network");
        second.says("steering loopback0");
        assert_eq!(status(&lab).1, 0);
        assert_eq!(now(), machine, "nor now");
        assert_eq!(on_hook_of(&lab, configuration), 1);
        // A listener that was there all the time.
        assert!(answers(&lab, 8080));
        second.end();
        ok(&lab, &["unload"]);
        assert_eq!(network(lab.guest()), before, "nothing is left");
    }
}

#[test]
fn a_filter_that_a_terminated_distribution_left_is_taken_over_or_taken_away() {
    let configuration = "hook = \"cls_bpf\"\n";
    let (lab, _proxy) = proxied(Lab::builder().configuration(configuration).build().unwrap());
    let before = network(lab.guest());
    for take_over in [true, false] {
        let other = another(&lab, configuration);
        ok_in(&lab, &other, &["load"]);
        terminate(&other);
        assert_eq!(on_hook_of(&lab, configuration), 1, "a filter outlives its pins");
        // The hooks on the cgroup go a little later.
        soon("its hooks to be gone", || status(&lab).0["elsewhere"].is_null());
        if take_over {
            ok(&lab, &["load"]);
            assert!(answers(&lab, 8080));
        }
        ok(&lab, &["unload"]);
        assert_eq!(on_hook_of(&lab, configuration), 0);
        assert_eq!(network(lab.guest()), before);
    }
}
