//! The source alias' route and policy route rules, as the agent keeps them.

use std::time::{Duration, Instant};

use wsl_mirror_lab::{
    HalfMade, Lab,
    checks::{ok, sh, status},
    pace,
};

use crate::guest::{Agent, answers, proxied, soon};

/// The rules and routes with our protocol number, in the kernel's order, but for those that keep connections on `lo`.
#[track_caller]
fn ours(lab: &Lab) -> String {
    sh(
        lab,
        "{ ip -4 rule; ip -4 route show table all; } | grep 'proto 119' | grep -v ' to 127.0.0.1 ' || true",
    )
}

/// Whether route and rules are there.
#[track_caller]
fn is_complete(lab: &Lab) -> bool {
    let alias = &status(lab).0["source_alias"];
    alias["route"] == true && alias["rules"] == true
}

#[track_caller]
fn repairs(agent: &Agent) -> usize {
    agent.0.output().matches("something has changed").count()
}

#[test]
fn a_route_that_a_link_took_away_is_back_within_a_second() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    let whole = ours(&lab);
    assert_eq!(whole.lines().count(), 4, "{whole}");
    let route = sh(&lab, "ip -4 route show table 127 proto kernel");
    for _ in 0..3 {
        sh(&lab, "ip link set loopback0 down");
        soon("a warning", || {
            status(&lab).0["agent"]["warnings"]
                .to_string()
                .contains("no flow goes direct: table 127 has no route")
        });
        sh(&lab, "ip link set loopback0 up");
        assert_eq!(ours(&lab).lines().count(), 3, "the rules alone");
        let since = Instant::now();
        sh(&lab, &format!("ip route add {} proto kernel table 127", route.trim()));
        soon("route and rules", || ours(&lab) == whole);
        assert!(since.elapsed() < pace::limit(Duration::from_secs(1)), "after {:?}", since.elapsed());
        soon("nothing to warn of", || status(&lab).0["agent"]["warnings"].is_null());
    }
    assert!(agent.0.output().contains("; add the route `192.0.0.8/32 via"), "{}", agent.0.output());
}

#[test]
fn rules_and_route_that_somebody_deletes_come_back() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    let whole = ours(&lab);
    let parts = [
        "ip rule del pref 0 from 192.0.0.8 iif loopback0",
        "ip rule del pref 0 from 192.0.0.8 blackhole",
        "ip rule del pref 2 to 192.0.0.8 blackhole",
        "ip route del 192.0.0.8/32 table 127",
        "ip rule add pref 5 to 192.0.0.8 blackhole protocol 119",
    ];
    for (index, part) in parts.iter().enumerate() {
        sh(&lab, part);
        soon(part, || ours(&lab) == whole);
        soon("one repair", || repairs(&agent) == index + 1);
    }
    // The agent's own changes are events, too; it finds nothing to do.
    std::thread::sleep(pace::limit(Duration::from_millis(600)));
    assert_eq!(repairs(&agent), parts.len(), "{}", agent.0.output());
    assert!(answers(&lab, 8080));
}

#[test]
fn a_source_alias_that_comes_into_use_stops_direct_flows_alone() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    let whole = ours(&lab);
    for (begin, end) in [
        ("ip route add 192.0.0.0/24 dev eth0", "ip route del 192.0.0.0/24 dev eth0"),
        ("ip addr add 192.0.0.8/32 dev eth0", "ip addr del 192.0.0.8/32 dev eth0"),
    ] {
        sh(&lab, begin);
        soon("everything of ours to go", || ours(&lab).is_empty());
        soon("a warning", || {
            let warnings = status(&lab).0["agent"]["warnings"].to_string();
            warnings.contains("no flow goes direct: the source alias 192.0.0.8 (`source_alias`) is in use")
        });
        assert_eq!(status(&lab).0["agent"]["state"], "steering");
        assert!(answers(&lab, 8080), "steering goes on");
        sh(&lab, end);
        soon("everything to come back", || ours(&lab) == whole);
        soon("nothing to warn of", || status(&lab).0["agent"]["warnings"].is_null());
    }
    agent.end();
}

#[test]
fn an_agent_begins_although_the_source_alias_is_in_use() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    sh(&lab, "ip route add 192.0.0.0/24 dev eth0");
    let agent = Agent::start(&lab, "no flow goes direct: the source alias 192.0.0.8");
    assert!(answers(&lab, 8080) && ours(&lab).is_empty());
    sh(&lab, "ip route del 192.0.0.0/24 dev eth0");
    soon("route and rules", || is_complete(&lab));
    agent.end();
    ok(&lab, &["unload"]);
    assert_eq!(ours(&lab), "");
}

#[test]
fn a_network_made_anew_gets_a_route_by_its_gateway() {
    let (lab, _proxy) = proxied(Lab::builder().half_made(HalfMade::NoTable127).build().unwrap());
    let _agent = Agent::start(&lab, "no flow goes direct: table 127 has no route");
    assert_eq!(ours(&lab), "");
    lab.complete_network(HalfMade::NoTable127).unwrap();
    soon("route and rules", || is_complete(&lab));
    let before = lab.gateway();
    lab.make_network_anew().unwrap();
    assert_ne!(lab.gateway(), before);
    soon("a route by the new gateway", || {
        ours(&lab).contains(&format!("via {} dev loopback0", lab.gateway()))
    });
    soon("route and rules", || is_complete(&lab));
    assert_eq!(ours(&lab).lines().count(), 4);
}
