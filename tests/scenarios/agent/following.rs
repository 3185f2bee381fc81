//! What changes, and is put right by itself.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::Signal;
use wsl_mirror_lab::{
    Lab, SCRATCH,
    checks::{OrPanic as _, delivery, ok, sh, status},
    lab_sockets, pace, pins, sockets,
};

use crate::guest::{Agent, answers, on_hook, proxied, soon};

const RULE: &str = "from all to 127.0.0.1 fwmark 0x1000/0x1000 iif lo lookup local proto 119";

#[test]
fn it_waits_for_the_interface_and_steers_when_it_comes() {
    let (lab, mut proxy) = proxied(Lab::builder().loopback0(false).build().unwrap());
    let before = delivery(lab.guest());
    let agent = Agent::start(&lab, "waiting for loopback0");
    assert_eq!(delivery(lab.guest()), before, "where no interface ever comes, the machine is as it was");
    let (report, code) = status(&lab);
    assert_eq!((report["agent"]["state"].as_str(), code), (Some("waiting"), 4));
    // Bound before there is anything to steer: its tag is there all the same.
    proxy.serve("0.0.0.0:8081").unwrap();
    lab.add_loopback0().unwrap();
    agent.says("steering loopback0");
    assert!(answers(&lab, 8080) && answers(&lab, 8081));
    let (report, code) = status(&lab);
    assert_eq!((report["agent"]["state"].as_str(), code), (Some("steering"), 0));
    assert!(delivery(lab.guest()).contains(RULE), "delivery by lo is prepared");
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
    let routes = sh(&lab, "ip -4 route show table 127; ip neigh show dev loopback0");
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

#[test]
fn a_rule_and_sysctls_that_somebody_takes_away_come_back() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let agent = Agent::start(&lab, "steering loopback0");
    let loaded = delivery(lab.guest());
    assert!(loaded.contains(RULE), "{loaded}");
    let conf = "/proc/sys/net/ipv4/conf";
    for taken in [
        "ip rule del pref 0 fwmark 0x1000/0x1000".to_owned(),
        format!("echo 0 > {conf}/lo/route_localnet"),
        format!("echo 0 > {conf}/lo/accept_local"),
        // systemd-networkd, when it starts: every rule that is not its own.
        format!("ip rule flush protocol 119; echo 0 > {conf}/lo/route_localnet"),
    ] {
        sh(&lab, &taken);
        soon(&format!("the machine to be as it was after `{taken}`"), || delivery(lab.guest()) == loaded);
    }
    // What stands in the way: the plain way, and back.
    sh(&lab, &format!("echo 1 > {conf}/all/rp_filter"));
    soon("the plain way", || status(&lab).0["delivery"]["way"] == "plain");
    assert!(!delivery(lab.guest()).contains(RULE), "it is of no use now");
    sh(&lab, &format!("echo 0 > {conf}/all/rp_filter"));
    soon("the way by lo", || status(&lab).0["delivery"]["way"] == "lo");
    soon("the rule", || delivery(lab.guest()) == loaded);
    assert!(answers(&lab, 8080));
    agent.end();
    assert_eq!(delivery(lab.guest()), loaded, "and when it ends, all goes on");
    assert!(answers(&lab, 8080));
}

#[test]
fn raw_rules_that_come_and_go_are_noticed() {
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let (lab, mut proxy) = proxied(Lab::builder().build().unwrap());
        proxy.serve("127.0.0.1:8090").unwrap();
        let _agent = Agent::start(&lab, "steering loopback0");
        // As Docker 28 makes it. Of the older iptables nothing tells; but engines make interfaces too.
        let rule = "PREROUTING -p tcp -d 127.0.0.1 --dport 8090 ! -i lo -j DROP";
        let script = format!("{iptables} -t raw -A {rule}; ip link add other0 type veth peer name other1");
        if let Err(error) = lab.guest().run("sh", ["-ec", &script]) {
            println!("not here: {error:#}");
            continue;
        }
        soon(&format!("8090 to be delivered by lo ({iptables})"), || has_rule(&lab));
        // The first SYN gets through: nothing has to be learned.
        assert!(answers(&lab, 8090), "{iptables}");
        sh(&lab, &format!("{iptables} -t raw -D {rule}; ip link del other0"));
        soon(&format!("8090 to go the plain way ({iptables})"), || !has_rule(&lab));
    }
}

/// Whether the program knows of a rule that drops 8090/tcp.
#[track_caller]
fn has_rule(lab: &Lab) -> bool {
    let key = ["0x9a", "0x1f", "0", "0"];
    let map = ["-j", "map", "lookup", "pinned", &pins::path("PORT_DELIVERY"), "key"];
    let value = lab.guest().run("bpftool", map.into_iter().chain(key)).or_panic().stdout;
    let value: serde_json::Value = serde_json::from_str(&value).or_panic();
    let known = &value["formatted"]["value"]["rule"];
    known.as_u64().with_context(|| format!("no rule: {value}")).or_panic() == 1
}

#[test]
fn what_packet_filters_said_counts_as_long_as_they_cannot_be_read() {
    let (lab, mut proxy) = proxied(Lab::builder().build().unwrap());
    proxy.serve("127.0.0.1:8090").unwrap();
    let agent = Agent::start(&lab, "steering loopback0");
    // What is not theirs to read by stays.
    sh(&lab, &format!("cp /usr/sbin/nft {SCRATCH}/nft"));
    let nft = |command: &str| sh(&lab, &format!("{SCRATCH}/nft '{command}'"));
    nft("add table ip their; add chain ip their c { type filter hook prerouting priority raw; }; \
         add rule ip their c iifname != lo ip daddr 127.0.0.1 tcp dport 8090 drop; \
         add rule ip their c ip daddr 192.0.2.1 meta mark set 0x1000");
    soon("8090 to be delivered by lo", || has_rule(&lab));
    soon("another bit", || status(&lab).0["mark"] == 0x0100_0000);
    let read_by = "/usr/sbin/nft /usr/sbin/xtables-nft-multi";
    sh(&lab, &format!("for tool in {read_by}; do mount --bind /bin/false $tool; done"));
    nft("add table ip more");
    agent.says("could not be read, and what they said before counts: nftables: nft failed");
    assert!(has_rule(&lab), "a rule is forgotten");
    assert_eq!(status(&lab).0["mark"], 0x0100_0000, "who uses which bit is forgotten");
    assert!(answers(&lab, 8090));
    nft("delete table ip their");
    sh(&lab, &format!("umount {read_by}"));
    // They are read again within half a minute, too.
    agent.0.signal(Signal::HUP).unwrap();
    soon("8090 to go the plain way", || !has_rule(&lab));
    soon("the first bit", || status(&lab).0["mark"] == 0x1000);
    assert!(status(&lab).0["agent"]["warnings"].is_null());
}

#[test]
fn an_interface_that_comes_back_in_the_middle_of_a_fight_is_steered_at_once() {
    for (what, is_there, undo) in [
        ("rule", "ip -4 rule | grep -q 'proto 119'", "ip rule del pref 0 fwmark 0x1000/0x1000"),
        (
            "filter",
            "tc filter show dev loopback0 ingress | grep -q wsl_mirror",
            "tc filter del dev loopback0 ingress",
        ),
    ] {
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
        assert!(pace::is_emulated() || fought == 1 + 10, "the {what} was taken away {fought} times");
        let since = Instant::now();
        lab.recreate_loopback0().unwrap();
        soon("the new one to be steered", || lab.filters().unwrap() == 1);
        assert!(since.elapsed() < pace::limit(Duration::from_secs(2)), "after {:?}", since.elapsed());
        assert!(answers(&lab, 8080), "{}", agent.0.output());
    }
}

#[test]
fn a_mark_that_somebody_begins_to_use_is_left_to_them() {
    let (lab, _proxy) = proxied(Lab::builder().build().unwrap());
    let _agent = Agent::start(&lab, "steering loopback0");
    assert_eq!(status(&lab).0["mark"], 0x1000);
    sh(
        &lab,
        "nft 'add table inet their; add chain inet their c; add rule inet their c meta mark set 0x1000'",
    );
    soon("another bit", || status(&lab).0["mark"] == 0x0100_0000);
    assert!(answers(&lab, 8080));
    assert!(delivery(lab.guest()).contains("fwmark 0x1000000/0x1000000"), "the rule too");
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
    for _ in 0..3 {
        sh(&lab, "tc filter del dev loopback0 ingress");
        soon("the filter", || lab.filters().unwrap() == 1);
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
