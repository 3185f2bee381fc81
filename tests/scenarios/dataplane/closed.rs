//! Rules of engines and of users: the former's are passed, and a port that a user closes stays closed.

use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _, STEER, load, load_with, nft, sh, unload, windows, windows_udp},
    loopback, pace, servers, tcp,
};

use crate::world::{
    HANG, assert_answers, assert_answers_udp, assert_hangs, assert_hangs_udp, exempt, raw_drop, services,
};

/// Docker 28 and later write it for each port that is published on 127.0.0.1.
#[test]
fn dockers_raw_drop_does_not_see_carried_flows() {
    let lab = services();
    for protocol in ["tcp", "udp"] {
        for port in [8080, 8081] {
            raw_drop(&lab, protocol, port);
        }
    }
    let hang = || {
        for port in [8080, 8081] {
            assert_hangs(&lab, port);
            assert_hangs_udp(&lab, port);
        }
    };
    hang();
    load(&lab);
    for _ in 0..pace::rounds(10) {
        for port in [8080, 8081] {
            assert_answers(&lab, port);
            assert_answers_udp(&lab, port);
        }
    }
    exempt(&lab, "add", "8080-8081");
    hang();
}

/// A port that answers in the lab, without any engine.
#[track_caller]
fn served() -> (Lab, [servers::Server; 2]) {
    let lab = Lab::builder().build().or_panic();
    let servers = [
        servers::tcp_echo(lab.guest(), loopback(8100)).or_panic(),
        servers::udp_echo(lab.guest(), loopback(8100)).or_panic(),
    ];
    (lab, servers)
}

/// A chain of this hook and priority with one rule.
fn chain(hook: &str, priority: &str, rule: &str) -> String {
    format!(
        "add table ip mine; add chain ip mine closed {{ type filter hook {hook} priority {priority}; }}; \
         add rule ip mine closed {rule}"
    )
}

/// Where users close ports, and by what.
fn closing_rules() -> Vec<(&'static str, String)> {
    let mut rules = Vec::new();
    let hooks = [("prerouting", "raw"), ("prerouting", "mangle"), ("input", "filter")];
    let matches = [
        "meta l4proto { tcp, udp } th dport 8100 drop",
        "iifname loopback0 drop",
        "iifname != lo ip daddr 127.0.0.0/8 drop",
        "ip saddr 127.0.0.0/8 ip daddr 127.0.0.0/8 meta l4proto { tcp, udp } th dport 8100 drop",
    ];
    for (hook, priority) in hooks {
        rules.extend(matches.map(|rule| (priority, chain(hook, priority, rule))));
    }
    // Behind NAT, the exact address is there again.
    rules.push(("filter", chain("input", "filter", "iifname loopback0 ip daddr 127.0.0.1 drop")));
    rules
}

#[test]
fn a_port_that_the_user_closes_stays_closed() {
    let (lab, _servers) = served();
    let rules = closing_rules();
    for loaded in [false, true] {
        if loaded {
            load_with(&lab, STEER);
        }
        assert_answers(&lab, 8100);
        assert_answers_udp(&lab, 8100);
        for (table, rule) in &rules {
            nft(&lab, rule);
            let answers = [
                windows(&lab, 8100).limit(pace::limit(HANG) / 5).echo(HELLO).is_ok(),
                windows_udp(&lab, 8100).limit(pace::limit(HANG) / 5).request(HELLO).is_ok(),
            ];
            assert_eq!(answers, [false; 2], "{table}, loaded: {loaded}: {rule}");
            nft(&lab, "delete table ip mine");
        }
    }
    assert!(lab.packets("steer_new").or_panic() >= 2 * rules.len() as u64, "each was carried");
}

/// A limit, and the documents name it: before NAT a carried packet goes to the alias.
#[test]
fn a_rule_on_exactly_127_0_0_1_before_nat_does_not_see_the_flow() {
    let (lab, _servers) = served();
    for priority in ["raw", "mangle"] {
        let rule = chain("prerouting", priority, "iifname loopback0 ip daddr 127.0.0.1 drop");
        nft(&lab, &rule);
        assert_hangs(&lab, 8100);
        load_with(&lab, STEER);
        assert_answers(&lab, 8100);
        assert_answers_udp(&lab, 8100);
        nft(&lab, "delete table ip mine");
        unload(&lab);
    }
}

/// firewalld's INPUT lets in what is translated, before it looks at zones: it takes a carried flow for an engine's.
#[test]
fn firewalld_lets_carried_flows_in_as_it_does_engines_flows() {
    const FIREWALLD: &str = "table inet firewalld {
        chain filter_INPUT {
            type filter hook input priority filter + 10; policy accept;
            ct state { established, related } accept
            ct status dnat accept
            iifname \"lo\" accept
            ct state invalid drop
            reject with icmpx admin-prohibited
        }
    }";
    let (lab, _servers) = served();
    let file = format!("{}/firewalld.nft", wsl_mirror_lab::SCRATCH);
    lab.guest().enter(|| std::fs::write(&file, FIREWALLD)).or_panic();
    lab.guest().run("nft", ["-f", &file]).or_panic();
    assert_hangs(&lab, 8100);
    assert_hangs_udp(&lab, 8100);
    load_with(&lab, STEER);
    assert_answers(&lab, 8100);
    assert_answers_udp(&lab, 8100);
    exempt(&lab, "add", "8100");
    assert_hangs(&lab, 8100);
    // Where firewalld does not make that exception, its zones decide about carried flows too.
    exempt(&lab, "del", "8100");
    sh(
        &lab,
        "handle=$(nft -a list chain inet firewalld filter_INPUT | sed -n 's/.*dnat accept # handle //p'); \
         nft delete rule inet firewalld filter_INPUT handle $handle",
    );
    assert_hangs(&lab, 8100);
}

#[test]
fn a_reject_rule_on_a_carried_port_refuses_the_client() {
    let (lab, _servers) = served();
    nft(&lab, &chain("input", "filter", "iifname loopback0 tcp dport 8100 reject with tcp reset"));
    let ask = || windows(&lab, 8100).echo(HELLO);
    assert_eq!(ask(), Err(tcp::Failure::Refused), "without wsl-mirror");
    load_with(&lab, STEER);
    for _ in 0..3 {
        assert_eq!(ask(), Err(tcp::Failure::Refused));
    }
    assert!(lab.packets("steer_new").or_panic() >= 3, "the SYNs were carried");
    assert!(lab.packets("steer_reply").or_panic() >= 3, "the resets were translated");
    assert_eq!(lab.packets("drop_no_reply").or_panic(), 0);
}
