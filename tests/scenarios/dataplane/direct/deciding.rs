//! Who decides: the port's policy, its path, the global path, the owner's policy, the default. The whole table is a test
//! of the verdict's own; these are its lines that a machine can hold.

use std::net::Ipv4Addr;

use wsl_mirror_core::abi::{EngineWay, Service, Target};
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load_with, ok, windows, windows_udp},
    loopback, nat, pace, servers, udp,
};

use super::{
    machine::{DIRECT, FIRST, Machine, PORT},
    who::{who, who_udp},
};
use crate::world::{AT_ONCE, HANG, assert_hangs, raw_drop};

/// Who gets a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    Container,
    Proxy,
    /// Nobody but the engine's own rules.
    Engine,
}

/// What TCP and UDP flows get under a configuration, and by which reason.
#[track_caller]
fn assert_gets(machine: &Machine, configuration: &str, target: Option<Target>, gets: Gets, reason: &str) {
    let lab = &machine.lab;
    load_with(lab, configuration);
    match target {
        Some(target) => machine.write(target),
        None => machine.forget_targets(),
    }
    assert_next(machine, gets, reason, configuration);
}

/// What the next flows get.
#[track_caller]
fn assert_next(machine: &Machine, gets: Gets, reason: &str, when: &str) {
    let lab = &machine.lab;
    nat::conntrack_flush(lab.guest()).or_panic();
    let before = machine.packets(reason);
    let limit = pace::limit(if gets == Gets::Engine { HANG / 5 } else { AT_ONCE });
    let tcp = who(&windows(lab, PORT).limit(limit).reset_on_close());
    let udp = who_udp(&windows_udp(lab, PORT).limit(limit));
    match gets {
        Gets::Container => {
            assert!(tcp.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{when}: {tcp:?}");
            assert!(udp.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{when}: {udp:?}");
        }
        Gets::Proxy => {
            assert!(tcp.as_ref().is_ok_and(Machine::is_from_proxy), "{when}: {tcp:?}");
            assert!(udp.as_ref().is_ok_and(Machine::is_from_proxy), "{when}: {udp:?}");
        }
        Gets::Engine => assert!(tcp.is_err() && udp.is_err(), "{when}: {tcp:?}, {udp:?}"),
    }
    // TCP's reset that ends the connection has a reason, too.
    assert!(machine.packets(reason) >= before + 2, "{when}: no two {reason}");
}

#[test]
fn a_proxys_port_goes_where_policy_and_path_say() {
    let machine = Machine::new(Service::Proxy);
    assert_hangs(&machine.lab, PORT);
    load_with(&machine.lab, "");
    let target = Some(machine.target(FIRST));
    let by_owner = "owners = [{ name = \"docker-proxy\", policy = \"steer\" }]\n";
    let cases: &[(&str, Option<Target>, Gets, &str)] = &[
        ("path = \"direct\"\n", target, Gets::Container, "direct_new"),
        ("path = \"direct\"\ndefault = \"steer\"\n", None, Gets::Proxy, "steer_new"),
        ("path = \"direct\"\n", None, Gets::Engine, "pass_default_policy"),
        ("path = \"auto\"\ndefault = \"steer\"\n", target, Gets::Proxy, "steer_new"),
        ("path = \"proxy\"\ndefault = \"steer\"\n", target, Gets::Proxy, "steer_new"),
        ("default = \"steer\"\n", target, Gets::Proxy, "steer_new"),
        (by_owner, target, Gets::Engine, "pass_default_policy"),
        // The port's path is stronger than the global one.
        ("path = \"proxy\"\n[ports]\n8080 = { path = \"direct\" }\n", target, Gets::Container, "direct_new"),
        (
            "path = \"direct\"\ndefault = \"steer\"\n[ports]\n8080 = { path = \"proxy\" }\n",
            target,
            Gets::Proxy,
            "steer_new",
        ),
        (
            "path = \"direct\"\ndefault = \"steer\"\n[ports]\n8080 = { path = \"auto\" }\n",
            target,
            Gets::Proxy,
            "steer_new",
        ),
        // The port's policy is stronger than both.
        (
            "path = \"proxy\"\n[ports]\n8080 = { policy = \"direct\" }\n",
            target,
            Gets::Container,
            "direct_new",
        ),
        ("path = \"direct\"\n[ports]\n8080 = { policy = \"steer\" }\n", target, Gets::Proxy, "steer_new"),
        (
            "path = \"direct\"\n[ports]\n8080 = { policy = \"pass\", path = \"direct\" }\n",
            target,
            Gets::Engine,
            "pass_exempt",
        ),
        ("path = \"direct\"\nexempt = [\"8080\"]\n", target, Gets::Engine, "pass_exempt"),
        ("[ports]\n8080 = { policy = \"direct\" }\n", None, Gets::Engine, "pass_no_target"),
    ];
    for (configuration, target, gets, reason) in cases {
        assert_gets(&machine, configuration, *target, *gets, reason);
    }
}

#[test]
fn the_command_lines_policy_beats_the_files() {
    let machine = Machine::direct(Service::Proxy);
    let policy = |arguments: &[&str]| ok(&machine.lab, &[&["policy"], arguments].concat());
    assert_next(&machine, Gets::Container, "direct_new", "at first");
    policy(&["set", "8080", "steer"]);
    assert_next(&machine, Gets::Proxy, "steer_new", "policy steer");
    policy(&["set", "8080", "pass"]);
    assert_next(&machine, Gets::Engine, "pass_exempt", "policy pass");
    policy(&["set", "8080", "direct"]);
    assert_next(&machine, Gets::Container, "direct_new", "policy direct");
    policy(&["unset", "8080"]);
    assert_next(&machine, Gets::Container, "direct_new", "no policy");
    ok(&machine.lab, &["exempt", "add", "8080"]);
    assert_next(&machine, Gets::Engine, "pass_exempt", "exempt");
}

/// Without us the engine's own rules take a holder's port to the container.
#[test]
fn a_holders_port_passes_until_the_engines_way_is_dropped() {
    let machine = Machine::new(Service::Holder);
    let lab = &machine.lab;
    let through = |when: &str| {
        let tcp = who(&windows(lab, PORT).reset_on_close());
        let udp = who_udp(&windows_udp(lab, PORT));
        assert!(tcp.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{when}: {tcp:?}");
        assert!(udp.as_ref().is_ok_and(|who| Machine::is_from(FIRST, who)), "{when}: {udp:?}");
    };
    through("without us");
    for (configuration, reason) in [
        ("", "pass_holder"),
        ("path = \"auto\"\n", "pass_holder"),
        ("path = \"proxy\"\n", "pass_holder"),
        ("default = \"steer\"\n", "pass_holder"),
        (DIRECT, "direct_new"),
        ("[ports]\n8080 = { policy = \"direct\" }\n", "direct_new"),
    ] {
        machine.load(configuration);
        nat::conntrack_flush(lab.guest()).or_panic();
        let before = machine.packets(reason);
        through(configuration);
        assert_eq!(machine.packets(reason), before + 2, "{configuration}: {reason}");
    }
    for protocol in ["tcp", "udp"] {
        raw_drop(lab, protocol, PORT);
    }
    let dropped = Target { flags: EngineWay::Dropped as u8, ..machine.target(FIRST) };
    load_with(lab, "");
    machine.aim(FIRST);
    assert_next(&machine, Gets::Engine, "pass_holder", "under a raw drop that nobody has noticed");
    machine.write(dropped);
    assert_next(&machine, Gets::Container, "direct_new", "under a raw drop");
    load_with(lab, "path = \"proxy\"\n");
    machine.write(dropped);
    assert_next(&machine, Gets::Engine, "pass_holder", "under a raw drop, path proxy");
}

/// Only 127.0.0.1: the source alias would hide which of Windows' addresses it was. Answers to the others stay inside, with
/// us and without.
#[test]
fn clients_of_other_loopback_addresses_are_steered() {
    let machine = Machine::direct(Service::Proxy);
    let lab = &machine.lab;
    let other = Ipv4Addr::new(127, 0, 0, 2);
    // From the port of a direct flow that lives: the two have no entry in common.
    let direct = windows_udp(lab, PORT).from_port(40_000).connect().or_panic();
    assert_eq!(udp::exchange(&direct, HELLO), Ok(HELLO.to_vec()));
    for from in [40_000, 40_001] {
        windows_udp(lab, PORT).from((other, from)).connect().or_panic().send(HELLO).or_panic();
        let _ = windows(lab, PORT).from((other, from)).limit(HANG / 5).connect();
        for protocol in ["udp", "tcp"] {
            let port = format!("sport={from}");
            let entries = nat::conntrack_with(lab.guest(), &[protocol, "src=127.0.0.2", &port]).or_panic();
            assert!(entries.len() == 1 && entries[0].contains("dst=127.119.0.1"), "{entries:#?}");
        }
    }
    assert_eq!((machine.packets("steer_instead"), machine.packets("direct_new")), (4, 1));
    assert_eq!(udp::exchange(&direct, HELLO), Ok(HELLO.to_vec()));
}

/// A service of the machine has no target.
#[test]
fn a_host_service_is_never_direct() {
    let lab = Lab::builder().build().or_panic();
    let _servers = [
        servers::tcp_echo(lab.guest(), loopback(8101)).or_panic(),
        servers::udp_echo(lab.guest(), loopback(8101)).or_panic(),
    ];
    let answers = || {
        assert_eq!(windows(&lab, 8101).echo(HELLO), Ok(HELLO.to_vec()));
        assert_eq!(windows_udp(&lab, 8101).request(HELLO), Ok(HELLO.to_vec()));
    };
    load_with(&lab, DIRECT);
    answers();
    load_with(&lab, &format!("{DIRECT}{STEER}"));
    answers();
    load_with(&lab, "[ports]\n8101 = { policy = \"direct\" }\n");
    answers();
    let count = |reason: &str| lab.packets(reason).or_panic();
    assert_eq!((count("direct_new"), count("steer_new"), count("pass_no_target")), (0, 2, 2));
}
