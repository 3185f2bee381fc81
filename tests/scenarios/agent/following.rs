//! What changes, and is put right by itself.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::{nft, ok, sh, status},
    lab_sockets, pace, sockets,
};

use crate::guest::{Agent, answers, on_hook, proxied, soon};

#[test]
fn it_waits_for_the_interface_and_steers_when_it_comes() {
    let (lab, mut proxy) = proxied(Lab::builder().loopback0(false).build().unwrap());
    let agent = Agent::start(&lab, "waiting for loopback0");
    let (report, code) = status(&lab);
    assert_eq!((report["agent"]["state"].as_str(), code), (Some("waiting"), 4));
    // Bound before there is anything to steer: its tag is there all the same.
    proxy.serve("0.0.0.0:8081").unwrap();
    lab.add_loopback0().unwrap();
    agent.says("steering loopback0");
    let both = [8080, 8081].map(|port| answers(&lab, port));
    assert_eq!(both, [true; 2], "{}\n{}", agent.0.output(), status(&lab).0);
    let (report, code) = status(&lab);
    assert_eq!((report["agent"]["state"].as_str(), code), (Some("steering"), 0));
}

#[test]
fn an_interface_that_comes_back_under_another_index_is_steered_again() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    for _ in 0..3 {
        assert!(answers(&lab, 8080));
        let before = status(&lab).0["ifindex"].clone();
        lab.recreate_loopback0().unwrap();
        soon("the new one to be steered", || status(&lab).1 == 0);
        assert_ne!(status(&lab).0["ifindex"], before);
    }
    assert!(answers(&lab, 8080));
}

#[test]
fn going_down_and_up_ends_nothing() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    let routes = sh(&lab, "ip -4 route show table 127 proto kernel; ip neigh show dev loopback0");
    let (route, neighbour) = routes.split_once('\n').unwrap_or_default();
    sh(&lab, "ip link set loopback0 down");
    assert_eq!(status(&lab).1, 0, "the program hangs there all the same");
    // As WSL does: up again, and then what was lost with it.
    sh(
        &lab,
        &format!(
            "ip link set loopback0 up; ip neigh replace {} nud permanent dev loopback0; ip route add {route} table 127",
            neighbour.replace("PERMANENT", "").trim()
        ),
    );
    assert!(answers(&lab, 8080));
}

/// Whether flows are carried.
#[track_caller]
fn carries(lab: &Lab) -> bool {
    status(lab).0["carrying"]["state"] == "on"
}

#[test]
fn a_flush_stops_carrying_within_a_second_until_nat_is_back() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    assert!(answers(&lab, 8080) && carries(&lab));
    let ruleset = sh(&lab, "nft list ruleset");
    for _ in 0..3 {
        let since = Instant::now();
        nft(&lab, "flush ruleset");
        soon("carrying to stop", || !carries(&lab));
        assert!(since.elapsed() < pace::limit(Duration::from_secs(1)), "after {:?}", since.elapsed());
        let warnings = status(&lab).0["agent"]["warnings"].to_string();
        assert!(warnings.contains("no flow can be carried") && warnings.contains("nat chain"), "{warnings}");
        // As if nothing was loaded: no engine is in the way any more.
        assert!(answers(&lab, 8080), "{}", status(&lab).0);
        let script = format!("nft -f - <<'END'\n{ruleset}\nEND");
        let since = Instant::now();
        sh(&lab, &script);
        soon("carrying to begin", || carries(&lab));
        assert!(since.elapsed() < pace::limit(Duration::from_secs(1)), "after {:?}", since.elapsed());
        assert!(answers(&lab, 8080), "the engine's trap is there again");
        soon("nothing to warn of", || status(&lab).0["agent"]["warnings"].is_null());
    }
    assert!(agent.0.output().contains("carrying off"), "{}", agent.0.output());
}

#[test]
fn rules_that_untrack_or_zone_come_and_go_and_are_noticed() {
    for (iptables, target) in [
        ("iptables-nft", "CT --notrack"),
        ("iptables-nft", "CT --zone 7"),
        ("iptables-legacy", "CT --notrack"),
        ("iptables-legacy", "CT --zone 7"),
    ] {
        let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
        let _agent = Agent::start(&lab, "steering loopback0");
        // Of the older iptables nothing tells; but engines make interfaces too.
        let rule = format!("PREROUTING -i loopback0 -j {target}");
        let script = format!("{iptables} -t raw -A {rule}; ip link add other0 type veth peer name other1");
        if let Err(error) = lab.guest().run("sh", ["-ec", &script]) {
            println!("not here: {error:#}");
            continue;
        }
        soon(&format!("carrying to stop ({iptables} {target})"), || !carries(&lab));
        sh(&lab, &format!("{iptables} -t raw -D {rule}; ip link del other0"));
        soon(&format!("carrying to begin ({iptables} {target})"), || carries(&lab));
        assert!(answers(&lab, 8080), "{iptables} {target}");
    }
}

#[test]
fn what_packet_filters_said_counts_as_long_as_they_cannot_be_read() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    // What is not theirs to read by stays.
    sh(&lab, &format!("cp /usr/sbin/nft {SCRATCH}/nft"));
    let nft = |command: &str| sh(&lab, &format!("{SCRATCH}/nft '{command}'"));
    nft("add table ip their; add chain ip their c { type filter hook prerouting priority raw; }; \
         add rule ip their c iifname loopback0 notrack");
    soon("carrying to stop", || !carries(&lab));
    let read_by = "/usr/sbin/nft /usr/sbin/xtables-nft-multi";
    sh(&lab, &format!("for tool in {read_by}; do mount --bind /bin/false $tool; done"));
    nft("add table ip more");
    agent.says("could not be read, and what they said before counts: nftables: nft failed");
    assert!(!carries(&lab), "a rule is forgotten");
    nft("delete table ip their");
    sh(&lab, &format!("umount -l {read_by}"));
    // They are read again within half a minute, too.
    agent.0.signal(Signal::HUP).unwrap();
    soon("carrying to begin", || carries(&lab));
    assert!(answers(&lab, 8080));
    soon("nothing to warn of", || status(&lab).0["agent"]["warnings"].is_null());
}

#[test]
fn an_interface_that_comes_back_in_the_middle_of_a_fight_is_steered_at_once() {
    for side in ["ingress", "egress"] {
        let is_there = format!("tc filter show dev loopback0 {side} | grep -q wsl_mirror");
        let undo = format!("tc filter del dev loopback0 {side}");
        let lab = Lab::builder().configuration("hook = \"cls_bpf\"\n").build().unwrap();
        let (lab, _proxy) = proxied(lab);
        let agent = Agent::start(&lab, "steering loopback0");
        // Whatever is put back is taken away, until it has not come back for a second.
        let most = if pace::is_emulated() { 5 } else { 30 };
        let fight = format!(
            "n=0; while [ $n -lt {most} ]; do i=0; until {is_there} || [ $i = 50 ]; do sleep 0.02; i=$((i+1)); done; \
             {is_there} || break; {undo}; n=$((n+1)); done; echo $n"
        );
        let fought: usize = sh(&lab, &fight).trim().parse().unwrap();
        // The first time it was not a repair that was undone.
        assert!(
            pace::is_emulated() || fought == 1 + 10,
            "the filter on {side} was taken away {fought} times"
        );
        let since = Instant::now();
        lab.recreate_loopback0().unwrap();
        soon("the new one to be steered", || lab.filters().unwrap() == 1);
        assert!(since.elapsed() < pace::limit(Duration::from_secs(2)), "after {:?}", since.elapsed());
        assert!(answers(&lab, 8080), "{}", agent.0.output());
    }
}

#[test]
fn another_gateway_changes_nothing() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    sh(
        &lab,
        "mac=$(ip neigh show dev loopback0 | sed 's/.*lladdr \\([0-9a-f:]*\\).*/\\1/'); \
         ip neigh add 169.254.73.152 lladdr $mac nud permanent dev loopback0; \
         ip route replace 127.0.0.1/32 via 169.254.73.152 dev loopback0 src 127.0.0.1 onlink proto kernel table 127",
    );
    assert!(answers(&lab, 8080));
    assert_eq!(status(&lab).1, 0);
}

#[test]
fn a_filter_that_somebody_removes_comes_back() {
    // Of a tcx link that is detached nothing tells: half a minute later it is seen, which is too long for a test.
    let lab = Lab::builder().configuration("hook = \"cls_bpf\"\n").build().unwrap();
    let (lab, _proxy) = proxied(lab);
    let _agent = Agent::start(&lab, "steering loopback0");
    for side in ["ingress", "egress", "ingress"] {
        sh(&lab, &format!("tc filter del dev loopback0 {side}"));
        soon("both filters", || status(&lab).0["attachment"] == "alive");
    }
    assert!(answers(&lab, 8080));
}

#[test]
fn two_proxies_come_and_go_and_only_theirs_are_steered() {
    let (lab, mut proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    proxy.leave().unwrap();
    let mut other = lab_sockets!(&lab, "other");
    other.serve("0.0.0.0:8080").unwrap();
    assert!(!answers(&lab, 8080), "nobody's proxy");
    drop(other);
    let mut again = lab_sockets!(&lab, sockets::PROXY);
    again.serve("0.0.0.0:8080").unwrap();
    assert!(answers(&lab, 8080));
    assert_eq!(on_hook(&lab), 1);
}

#[test]
fn in_virtioproxy_mode_what_is_for_127_0_0_1_is_steered_too_and_all_else_passes() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    assert_eq!(status(&lab).0["networking"], "mirrored");
    sh(&lab, "ip addr add 169.254.73.2/24 dev loopback0 noprefixroute");
    assert_eq!(status(&lab).0["networking"], "virtioproxy");
    assert!(ok(&lab, &["status"]).stdout.contains("\nmode     virtioproxy: "), "people too");
    assert!(answers(&lab, 8080));
}
