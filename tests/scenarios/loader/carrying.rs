//! Carrying: what stops it, what a status says of that, and what packets get meanwhile.

use std::mem::offset_of;

use wsl_mirror_core::abi::Settings;
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, config, load_with, nft, ok, refused, sh, status, windows},
    loopback, nat, servers,
};

use crate::guest::{everything, unchanged};

/// The state of `carrying`, and what is in the way.
#[track_caller]
fn carrying(lab: &Lab) -> (String, Vec<String>) {
    let carrying = status(lab).0["carrying"].clone();
    let obstacles = carrying["obstacles"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (text(&carrying["state"]), obstacles.iter().map(text).collect())
}

/// Sets `SETTINGS.carrying` to on by hand, whatever the loader found.
#[track_caller]
fn carry_all_the_same(lab: &Lab) {
    let map = wsl_mirror_lab::pins::path("SETTINGS");
    let dump = sh(lab, &format!("bpftool -j map dump pinned {map}"));
    let dump: serde_json::Value = serde_json::from_str(&dump).or_panic();
    let bytes = dump[0]["value"].as_array().cloned().unwrap_or_default();
    let mut bytes: Vec<_> = bytes.iter().map(|byte| byte.as_str().unwrap_or_default().to_owned()).collect();
    // Little endian.
    "0x01".clone_into(&mut bytes[offset_of!(Settings, carrying)]);
    sh(lab, &format!("bpftool map update pinned {map} key 0 0 0 0 value {}", bytes.join(" ")));
}

/// A lab with an echo service on 8100 that is steered, and no engine.
#[track_caller]
fn steered() -> (Lab, servers::Server) {
    let lab = Lab::builder().build().or_panic();
    let server = servers::tcp_echo(lab.guest(), loopback(8100)).or_panic();
    (lab, server)
}

/// Loads, wants nothing to be carried for this reason, and plain packets to pass. With carrying forced, flows hang.
#[track_caller]
fn stops(lab: &Lab, words: &str) {
    load_with(lab, STEER);
    let (state, obstacles) = carrying(lab);
    assert!(state == "off" && obstacles.len() == 1 && obstacles[0].contains(words), "{state} {obstacles:?}");
    assert_eq!(windows(lab, 8100).echo(HELLO).as_deref(), Ok(HELLO), "as if nothing was loaded");
    assert!(lab.packets("pass_not_carrying").unwrap_or(0) > 0, "{}", status(lab).0);
    assert_eq!(lab.packets("steer_new").or_panic(), 0);
    let text = ok(lab, &["status"]).stdout;
    assert!(text.contains("\ncarrying off") && text.contains(words), "{text}");
    // What the switch is for.
    carry_all_the_same(lab);
    assert!(windows(lab, 8100).echo(HELLO).is_err(), "a carried flow works after all");
}

/// Loads, and wants flows to be carried.
#[track_caller]
fn carries(lab: &Lab) {
    load_with(lab, STEER);
    assert_eq!(carrying(lab), ("on".to_owned(), vec![]));
    let before = lab.packets("steer_new").or_panic();
    assert_eq!(windows(lab, 8100).echo(HELLO).as_deref(), Ok(HELLO));
    assert_eq!(lab.packets("steer_new").or_panic(), before + 1);
}

#[test]
fn without_hooks_of_nat_and_conntrack_nothing_is_carried() {
    let (lab, _server) = steered();
    nft(&lab, "flush ruleset");
    stops(&lab, "no table has a nat chain");
    ok(&lab, &["unload"]);
    // The kernel then has NAT's hooks, and still not conntrack's.
    nft(&lab, "add table ip their; add chain ip their c { type nat hook postrouting priority srcnat; }");
    stops(&lab, "no rule needs conntrack");
    ok(&lab, &["unload"]);
    nft(&lab, "add rule ip their c oifname \"eth0\" masquerade");
    carries(&lab);
}

#[test]
fn only_a_rule_that_untracks_our_packets_stops_carrying() {
    for (hook, ours, others) in [
        ("prerouting", "iifname \"loopback0\" notrack", "iifname != \"loopback0\" notrack"),
        ("output", "oifname \"loopback0\" notrack", "oifname \"eth0\" notrack"),
    ] {
        let (lab, _server) = steered();
        let chain =
            format!("add table ip their; add chain ip their c {{ type filter hook {hook} priority raw; }}");
        nft(&lab, &format!("{chain}; add rule ip their c {others}"));
        carries(&lab);
        ok(&lab, &["unload"]);
        nft(&lab, &format!("add rule ip their c {ours}"));
        stops(&lab, "out of conntrack");
    }
}

#[test]
fn a_zone_for_local_destinations_stops_carrying() {
    // What moby#53553 is healed with elsewhere.
    let (lab, _server) = steered();
    nft(
        &lab,
        "add table ip their; add chain ip their c { type filter hook prerouting priority raw; }; \
         add rule ip their c fib daddr type local ct zone set 7",
    );
    stops(&lab, "conntrack zone");
}

#[test]
fn rules_of_both_kinds_of_iptables_are_seen() {
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let (lab, _server) = steered();
        let script = format!("{iptables} -t raw -A PREROUTING -i loopback0 -j CT --notrack");
        if let Err(error) = lab.guest().run("sh", ["-ec", &script]) {
            println!("not here: {error:#}");
            continue;
        }
        stops(&lab, "out of conntrack");
        let (_, obstacles) = carrying(&lab);
        assert!(
            obstacles[0].contains(&format!("{iptables} raw: -A PREROUTING -i loopback0")),
            "{obstacles:?}"
        );
    }
}

#[test]
fn a_load_says_what_keeps_flows_from_being_carried() {
    let lab = Lab::builder().build().unwrap();
    assert_eq!(ok(&lab, &["load"]).stderr, "");
    nft(&lab, "flush ruleset");
    let text = ok(&lab, &["status"]).stdout;
    assert!(text.contains("\ncarrying on, but flows hang"), "{text}");
    let said = ok(&lab, &["load"]).stderr;
    assert!(said.contains("no flow can be carried") && said.contains("no table has a nat chain"), "{said}");
    nft(
        &lab,
        "add table ip their; add chain ip their c { type nat hook input priority 100; }; \
         add rule ip their c ct state invalid drop",
    );
    let text = ok(&lab, &["status"]).stdout;
    assert!(text.contains("\ncarrying off: nothing is in the way any more"), "{text}");
}

#[test]
fn another_alias_is_taken_by_unload_and_load() {
    let (lab, _server) = steered();
    load_with(&lab, STEER);
    let other = config(&lab, &format!("alias = \"127.1.2.3\"\n{STEER}"));
    let before = everything(&lab);
    let said = refused(&lab, &["load", "--config", &other], 6);
    assert!(said.contains("127.1.2.3") && said.contains("127.119.0.1") && said.contains("unload"), "{said}");
    unchanged(&lab, &before);
    ok(&lab, &["unload"]);
    ok(&lab, &["load", "--config", &other]);
    assert_eq!(status(&lab).0["alias"], "127.1.2.3");
    assert_eq!(windows(&lab, 8100).echo(HELLO).as_deref(), Ok(HELLO));
    let entries = nat::conntrack_with(lab.guest(), &["tcp", "dst=127.1.2.3", "dport=8100"]).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
}
