//! Delivery by `lo`: what a load prepares on the machine, what unload puts back, and when neither is done.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use wsl_mirror_lab::{
    Lab, Namespace,
    checks::{self, OrPanic as _, config, delivery, ok, ok_in, refused, sh, status, wait_until, windows},
    loopback, servers, tcp,
};

use crate::{
    bpf,
    guest::{everything, published, unchanged},
};

const RULE: &str = "0:\tfrom all to 127.0.0.1 fwmark 0x1000/0x1000 iif lo lookup local proto 119\n";
const RECORD: &str = "altname wsl-mirror,route_localnet=0,accept_local=0\n";

/// `way` of `status`, and what stands in the way.
#[track_caller]
fn way(lab: &Lab) -> (String, Vec<String>) {
    let (status, _) = status(lab);
    let delivery = &status["delivery"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let obstacles =
        delivery["obstacles"].as_array().with_context(|| format!("no obstacles: {status}")).or_panic();
    (text(&delivery["way"]), obstacles.iter().map(text).collect())
}

#[track_caller]
fn by_lo(lab: &Lab) {
    assert_eq!(way(lab), ("lo".to_owned(), Vec::new()));
}

/// What happens to a distribution's bpffs when it is terminated. The kernel lets go of the link a little later.
#[track_caller]
fn terminate(lab: &Lab, other: Namespace) {
    checks::terminate(&other);
    drop(other);
    if !bpf::has_tcx(lab) {
        // A filter outlives its distribution; here it would go on steering, which is another story.
        sh(lab, "tc qdisc del dev loopback0 clsact");
    }
    wait_until("the end of its program", Duration::from_secs(10), || bpf::tcx(lab.guest()).is_empty());
}

#[test]
fn load_makes_rule_switches_and_record_and_unload_takes_exactly_them_away() {
    let lab = Lab::builder().build().unwrap();
    // What others have that looks like ours.
    sh(
        &lab,
        "ip link set lo alias 'wsl-mirror,route_localnet=7'; ip link property add dev lo altname wsl-mirrored; \
         ip rule add pref 5 to 10.0.0.0/8 lookup 99 protocol 119; \
         ip rule add pref 0 iif lo to 127.0.0.2 fwmark 0x2/0x2 lookup local",
    );
    let before = delivery(lab.guest());
    assert!(before.contains("lo/route_localnet:0") && before.contains("lo/accept_local:0"), "{before}");
    ok(&lab, &["load"]);
    let loaded = delivery(lab.guest());
    for there in [RULE, RECORD, "lo/route_localnet:1\n", "lo/accept_local:1\n"] {
        assert!(loaded.contains(there), "no {there:?} in:\n{loaded}");
    }
    by_lo(&lab);
    // Before the rules for table 127, and behind WSL's own.
    let at = |text: &str| loaded.find(text).with_context(|| format!("no {text:?} in:\n{loaded}"));
    assert!(
        at("iif eth0").unwrap() < at(RULE).unwrap() && at(RULE).unwrap() < at("lookup 127").unwrap(),
        "{loaded}"
    );

    ok(&lab, &["load"]);
    assert_eq!(delivery(lab.guest()), loaded, "a second load");
    ok(&lab, &["unload"]);
    assert_eq!(delivery(lab.guest()), before);

    // Nothing of it where the configuration wants none; what is there goes.
    ok(&lab, &["load"]);
    let path = config(&lab, "delivery = \"plain\"\n");
    ok(&lab, &["load", "--config", &path]);
    assert_eq!(delivery(lab.guest()), before);
    assert_eq!(way(&lab), ("plain".to_owned(), Vec::new()));
    let text = ok(&lab, &["status"]).stdout;
    assert!(text.contains("\ndelivery plain: so says the configuration"), "{text}");
    ok(&lab, &["load"]);
    by_lo(&lab);
}

#[test]
fn another_bit_means_another_rule_and_the_old_one_goes() {
    let lab = Lab::builder().build().unwrap();
    let before = delivery(lab.guest());
    for mark in ["0x1000", "0x80", "0x60000"] {
        let path = config(&lab, &format!("mark = {mark}\n"));
        ok(&lab, &["load", "--config", &path]);
        let rules = sh(&lab, "ip -4 rule | grep 'proto 119'");
        assert_eq!(rules, RULE.replace("0x1000", mark));
        by_lo(&lab);
    }
    // Duplicates with other bits, as loads of several distributions may leave them.
    sh(&lab, "ip rule add pref 0 iif lo to 127.0.0.1 fwmark 0x4/0x4 lookup local protocol 119");
    ok(&lab, &["unload"]);
    assert_eq!(delivery(lab.guest()), before);
}

#[test]
fn what_a_terminated_distribution_left_is_adopted_or_taken_away() {
    let lab = Lab::builder().build().unwrap();
    let before = delivery(lab.guest());
    for adopt in [true, false] {
        let other = lab.another_distribution().unwrap();
        ok_in(&lab, &other, &["load"]);
        let loaded = delivery(lab.guest());
        assert!(loaded.contains(RULE) && loaded.contains(RECORD), "{loaded}");
        terminate(&lab, other);
        assert_eq!(delivery(lab.guest()), loaded, "nobody has taken it away");
        let (left, code) = status(&lab);
        let left = left["left_behind"].as_array().expect("it is not seen");
        assert_eq!((left.len(), code), (4, 3), "rule, two switches, record: {left:?}");
        if adopt {
            ok(&lab, &["load"]);
            assert_eq!(
                delivery(lab.guest()),
                loaded,
                "the same rule, and the old values as they were recorded"
            );
            by_lo(&lab);
        }
        let said = ok(&lab, &["unload"]).stderr;
        assert_eq!(said, "");
        assert_eq!(delivery(lab.guest()), before);
        assert_eq!(ok(&lab, &["unload"]).stderr, "wsl-mirror: nothing is loaded\n");
    }
}

#[test]
fn what_another_distribution_still_needs_stays() {
    let lab = Lab::builder().build().unwrap();
    let before = delivery(lab.guest());
    let other = lab.another_distribution().unwrap();
    // On another interface: loopback0 is for one of them.
    other.enter(|| std::fs::write("/etc/wsl-mirror.toml", "interface = \"eth0\"\n")).unwrap();
    ok_in(&lab, &other, &["load"]);
    let loaded = delivery(lab.guest());
    ok(&lab, &["load"]);
    assert_eq!(delivery(lab.guest()), loaded);
    // Another bit here: then both rules are needed.
    let path = config(&lab, "mark = 0x80\n");
    ok(&lab, &["load", "--config", &path]);
    assert_eq!(sh(&lab, "ip -4 rule | grep -c 'proto 119'").trim(), "2");
    ok(&lab, &["load"]);
    ok(&lab, &["unload"]);
    assert!(delivery(lab.guest()).contains(RULE), "the other one's packets need it");
    assert_eq!(status(&lab).0["left_behind"], Value::Null, "it is not left behind");
    ok_in(&lab, &other, &["unload"]);
    assert_eq!(delivery(lab.guest()), before);
}

#[test]
fn what_somebody_else_has_set_is_left_alone() {
    let lab = Lab::builder().build().unwrap();
    let lo = |name: &str| lab.guest().sysctl(&format!("net/ipv4/conf/lo/{name}"));
    // On before us.
    sh(&lab, "echo 1 > /proc/sys/net/ipv4/conf/lo/accept_local");
    ok(&lab, &["load"]);
    // And changed after us.
    sh(&lab, "echo 2 > /proc/sys/net/ipv4/conf/lo/route_localnet");
    ok(&lab, &["unload"]);
    assert_eq!((lo("accept_local").unwrap().as_str(), lo("route_localnet").unwrap().as_str()), ("1", "2"));
    let left = delivery(lab.guest());
    assert!(!left.contains("wsl-mirror") && !left.contains("proto 119"), "{left}");

    // Somebody has taken our rule, or a switch: the next load makes it again, and still knows what was before.
    sh(&lab, "cd /proc/sys/net/ipv4/conf/lo; echo 0 > accept_local; echo 0 > route_localnet");
    let before = delivery(lab.guest());
    ok(&lab, &["load"]);
    let loaded = delivery(lab.guest());
    sh(&lab, "ip rule del pref 0 fwmark 0x1000/0x1000; echo 0 > /proc/sys/net/ipv4/conf/lo/accept_local");
    let (way, obstacles) = way(&lab);
    assert_eq!((way.as_str(), obstacles.len()), ("lo", 2), "{obstacles:?}");
    assert!(ok(&lab, &["status"]).stdout.contains("by lo, which loses packets"));
    ok(&lab, &["load"]);
    assert_eq!(delivery(lab.guest()), loaded);
    ok(&lab, &["unload"]);
    assert_eq!(delivery(lab.guest()), before);
}

#[test]
fn a_configured_bit_that_is_in_use_is_refused_and_the_default_moves() {
    for (prepare, words) in [
        (
            "ip rule add pref 9 fwmark 0x1080/0x1080 lookup 99",
            "ip rule 9: from all fwmark 0x1080/0x1080 lookup 99",
        ),
        (
            "nft 'add table inet their; add chain inet their c; add rule inet their c meta mark set mark or 0x1080'",
            "nft inet their: chain c handle",
        ),
        (
            "nft 'add table ip their; add chain ip their c; add rule ip their c ct mark and 0x1080 == 0 accept'",
            "nft ip their: chain c handle",
        ),
        (
            "iptables-nft -t mangle -A PREROUTING -j MARK --set-xmark 0x1080/0xffffffff",
            "-j MARK --set-xmark 0x1080",
        ),
        (
            "iptables-legacy -t mangle -A PREROUTING -j MARK --set-xmark 0x1080/0xffffffff",
            "iptables-legacy mangle: -A",
        ),
    ] {
        let lab = Lab::builder().build().unwrap();
        if let Err(error) = lab.guest().run("sh", ["-ec", prepare]) {
            // Small kernels have the one or the other iptables, or no target MARK.
            assert!(prepare.starts_with("iptables-"), "{error:#}");
            println!("not here: {prepare}: {error:#}");
            continue;
        }
        let before = everything(&lab);
        let path = config(&lab, "mark = 0x80\n");
        let said = refused(&lab, &["load", "--config", &path], 6);
        println!("{said}");
        assert!(said.contains(words) && said.contains("mark = 0x80"), "{said}");
        unchanged(&lab, &before);

        ok(&lab, &["load"]);
        let moved = || status(&lab).0["mark"].as_u64();
        assert_eq!(moved(), Some(0x0100_0000), "after {prepare}");
        by_lo(&lab);
        let loaded = delivery(lab.guest());
        ok(&lab, &["load"]);
        assert_eq!((moved(), delivery(lab.guest())), (Some(0x0100_0000), loaded), "a second time");
        // Refused with something loaded: that goes on.
        let loaded = everything(&lab);
        refused(&lab, &["load", "--config", &path], 6);
        unchanged(&lab, &loaded);
    }
}

#[test]
fn rules_about_our_packets_do_not_take_the_bit_from_us() {
    let lab = Lab::builder().build().unwrap();
    sh(
        &lab,
        "nft 'add table ip mine; add chain ip mine in { type filter hook input priority filter; }; \
         add rule ip mine in meta mark and 0x1000 != 0 counter accept comment \"wsl-mirror: steered\"'",
    );
    let path = config(&lab, "mark = 0x1000\n");
    for arguments in [["load"].as_slice(), &["load", "--config", &path]] {
        ok(&lab, arguments);
        assert_eq!(status(&lab).0["mark"], 0x1000);
    }
}

/// What stands in the way, how it is taken away, and what is said about it.
const OBSTACLES: [(&str, &str, &str); 9] = [
    ("ip link set lo down", "ip link set lo up", "lo is down"),
    (
        "echo 1 > /proc/sys/net/ipv4/conf/lo/rp_filter",
        "echo 0 > /proc/sys/net/ipv4/conf/lo/rp_filter",
        "path filter",
    ),
    (
        "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter",
        "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter",
        "path filter",
    ),
    (
        "echo 1 > /proc/sys/net/ipv4/tcp_fwmark_accept",
        "echo 0 > /proc/sys/net/ipv4/tcp_fwmark_accept",
        "tcp_fwmark_accept is on",
    ),
    (
        "echo 1 > /proc/sys/net/ipv4/fwmark_reflect",
        "echo 0 > /proc/sys/net/ipv4/fwmark_reflect",
        "fwmark_reflect is on",
    ),
    (
        "nft 'add table ip vpn; add chain ip vpn in { type filter hook prerouting priority mangle; }; \
         add chain ip vpn out { type route hook output priority mangle; }; add chain ip vpn back; \
         add rule ip vpn in ct mark set meta mark; add rule ip vpn out jump back; \
         add rule ip vpn back meta mark set ct mark'",
        "nft delete table ip vpn",
        "nft ip vpn: chain back handle",
    ),
    ("ip rule add pref 0 to 127.0.0.0/8 lookup 127", "ip rule del pref 0 to 127.0.0.0/8", "lookup 127"),
    (
        "ip link property add dev lo altname wsl-mirror,rp_filter=2",
        "ip link property del dev lo altname wsl-mirror,rp_filter=2",
        "does not understand",
    ),
    // Also for those who have it in a container: it lies over what the guest has.
    (
        "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys",
        "umount /proc/sys",
        "cannot be written",
    ),
];

#[test]
fn each_obstacle_means_the_plain_way_and_status_says_why() {
    for (make, unmake, words) in OBSTACLES {
        println!("{make}");
        let lab = Lab::builder().build().unwrap();
        let _server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
        sh(&lab, make);
        let before = delivery(lab.guest());
        ok(&lab, &["load"]);
        assert_eq!(delivery(lab.guest()), before, "nothing is prepared that does not help");
        let (plain, obstacles) = way(&lab);
        assert!(plain == "plain" && !obstacles.is_empty(), "{obstacles:?}");
        assert!(obstacles.iter().all(|obstacle| obstacle.contains(words)), "{obstacles:?}");
        let text = ok(&lab, &["status"]).stdout;
        assert!(
            text.contains(&obstacles[0]) && text.contains("delivery plain: by lo packets would"),
            "{text}"
        );
        let is_up = !make.contains("lo down");
        if is_up {
            assert_eq!(windows(&lab, 8100).echo(b"hello"), Ok(b"hello".to_vec()), "steered all the same");
        }

        sh(&lab, unmake);
        assert_eq!(way(&lab), ("plain".to_owned(), Vec::new()), "the program goes on as it was told");
        ok(&lab, &["load"]);
        by_lo(&lab);
        // What is on is on, whether one may write it or not; and a rule that is added now stands behind ours.
        if words == "cannot be written" || words == "lookup 127" {
            sh(&lab, make);
            by_lo(&lab);
            continue;
        }
        sh(&lab, make);
        let (lo, obstacles) = way(&lab);
        assert!(lo == "lo" && obstacles.len() == 1 && obstacles[0].contains(words), "{obstacles:?}");
        ok(&lab, &["load"]);
        assert_eq!(way(&lab).0, "plain");
        // Of a record that nobody understands, only what is known for sure is taken away.
        assert_eq!(delivery(lab.guest()), before);
    }
}

/// What the eBPF program does to a packet that it delivers by `lo`, done by a few instructions: so each of the
/// obstacles is one indeed, and without them nothing else is needed.
#[test]
fn what_load_prepares_is_enough_and_each_obstacle_costs_the_packet() {
    // In the end nobody listens, and the packets are to come nevertheless.
    let lab = Lab::builder().sends_always([8100..=8100]).build().unwrap();
    let server = servers::tcp_echo(lab.guest(), loopback(8100)).unwrap();
    let client = |patience| windows(&lab, 8100).limit(Duration::from_millis(patience)).echo(b"hello");
    sh(
        &lab,
        "nft 'add table ip guard; add chain ip guard pre { type filter hook prerouting priority raw; }; \
         add rule ip guard pre iifname != lo ip daddr 127.0.0.1 tcp dport 8100 counter drop'",
    );
    ok(&lab, &["load"]);
    assert_eq!(client(500), Err(tcp::Failure::ConnectTimedOut), "the rule that eats it");
    let dropped = &status(&lab).0["delivery"]["dropped"];
    assert_eq!(
        (&dropped[0]["first_port"], &dropped[0]["protocol"]),
        (&8100.into(), &"tcp".into()),
        "{dropped}"
    );
    bpf::add_redirect(&lab, 8100, 0x1000);
    assert_eq!(client(5000), Ok(b"hello".to_vec()));
    for (make, unmake, _) in OBSTACLES {
        // A release that does not know what to put back, and one that cannot switch on what is on, lose no packet; and
        // the kernel's own answers come below.
        if make.contains("altname") || make.contains("mount") || make.contains("reflect") {
            continue;
        }
        let behind_ours = make.replace("rule add pref 0 to", "rule add pref 0 iif lo to");
        sh(&lab, &behind_ours);
        let lost = client(500);
        // Behind ours it takes nothing.
        let harmless = make.starts_with("ip rule");
        assert_eq!(lost.is_ok(), harmless, "after {make}: {lost:?}");
        sh(&lab, unmake);
        assert_eq!(client(5000), Ok(b"hello".to_vec()), "after {unmake}");
    }
    for (value, arrives) in [("1", false), ("2", true)] {
        sh(&lab, &format!("echo {value} > /proc/sys/net/ipv4/conf/lo/rp_filter"));
        assert_eq!(client(if arrives { 5000 } else { 500 }).is_ok(), arrives, "rp_filter {value}");
    }
    sh(&lab, "echo 0 > /proc/sys/net/ipv4/conf/lo/rp_filter");
    drop(server);
    assert_eq!(client(5000), Err(tcp::Failure::Refused));
    sh(&lab, "echo 1 > /proc/sys/net/ipv4/fwmark_reflect");
    assert_eq!(client(500), Err(tcp::Failure::ConnectTimedOut), "the reset stays here");
    ok(&lab, &["unload"]);
    assert!(client(500).is_err(), "without the rule the packets go back to Windows");
}

#[test]
fn ports_that_are_dropped_unless_they_come_in_on_lo_are_listed_with_the_rule() {
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let lab = Lab::builder().build().unwrap();
        // As Docker 28 makes them; of UDP 8082, as it does where it has seen WSL.
        let rules = "-p tcp -d 127.0.0.1 --dport 8080 ! -i lo -j DROP\n\
                     -p udp -d 127.0.0.1 --dport 8081 ! -i lo -j DROP\n\
                     -p udp -d 127.0.0.1 --dport 8082 -i loopback0 -j ACCEPT\n\
                     -p udp -d 127.0.0.1 --dport 8082 ! -i lo -j DROP";
        let script: Vec<_> =
            rules.lines().map(|rule| format!("{iptables} -t raw -A PREROUTING {rule}")).collect();
        if let Err(error) = lab.guest().run("sh", ["-ec", &script.join("; ")]) {
            println!("not here: {error:#}");
            continue;
        }
        ok(&lab, &["load"]);
        let listed = &status(&lab).0["delivery"]["dropped"];
        let ports: Vec<_> = listed
            .as_array()
            .expect("no list")
            .iter()
            .map(|dropped| {
                format!("{}/{}", dropped["first_port"], dropped["protocol"].as_str().unwrap_or_default())
            })
            .collect();
        assert_eq!(ports, ["8080/tcp", "8081/udp"], "{iptables}: {listed:#}");
        let text = ok(&lab, &["status"]).stdout;
        assert!(text.contains("only by lo: 8081/udp, for "), "{text}");
    }
}

#[test]
fn beside_a_real_docker_everything_is_read() {
    let lab = published();
    ok(&lab, &["load"]);
    let expected = serde_json::json!({"way": "lo", "obstacles": [], "dropped": [], "unread": []});
    assert_eq!(status(&lab).0["delivery"], expected);
    ok(&lab, &["unload"]);
}

#[test]
fn looking_makes_no_tables_of_the_older_iptables() {
    let lab = Lab::builder().build().unwrap();
    let tables = || sh(&lab, "cat /proc/net/ip_tables_names 2>/dev/null || true; nft list tables");
    let before = tables();
    ok(&lab, &["load"]);
    ok(&lab, &["status"]);
    assert_eq!(tables(), before);
}

#[test]
fn without_the_tools_that_read_packet_filters_it_loads_and_says_what_it_does_not_know() {
    let lab = Lab::builder().build().unwrap();
    sh(&lab, "for tool in /usr/sbin/nft /usr/sbin/xtables-nft-multi; do mount --bind /bin/false $tool; done");
    ok(&lab, &["load"]);
    let unread = |lab: &Lab| status(lab).0["delivery"]["unread"].clone();
    let said = unread(&lab).to_string();
    assert!(said.contains("nftables: nft failed"), "{said}");
    assert_eq!(way(&lab).0, "lo", "what is not known is no obstacle");

    let lab = Lab::builder().build().unwrap();
    // /usr is an overlay of the guest's own.
    sh(&lab, "rm -f /usr/sbin/nft /usr/sbin/*tables* /usr/bin/*tables* /usr/local/sbin/nft");
    ok(&lab, &["load"]);
    let said = unread(&lab).to_string();
    assert!(said.contains("neither nft nor iptables-nft-save is installed"), "{said}");
    assert!(ok(&lab, &["status"]).stdout.contains("could not be read: nftables: neither"), "people too");
}

#[test]
fn a_filter_of_another_distribution_needs_it_too() {
    let lab = Lab::builder().build().unwrap();
    let other = lab.another_distribution().unwrap();
    let before = delivery(lab.guest());
    other.enter(|| std::fs::write("/etc/wsl-mirror.toml", "hook = \"cls_bpf\"\n")).unwrap();
    ok_in(&lab, &other, &["load"]);
    let loaded = delivery(lab.guest());
    // Somebody who has loaded nothing has nothing to take away.
    assert_eq!(ok(&lab, &["unload"]).stderr, "wsl-mirror: nothing is loaded\n");
    assert_eq!(delivery(lab.guest()), loaded);
    let (seen, code) = status(&lab);
    assert_eq!((&seen["loaded"], &seen["steering"], code), (&false.into(), &true.into(), 0), "{seen}");
    assert_eq!(seen["elsewhere"][0]["hook"], "cls_bpf");
    ok_in(&lab, &other, &["unload"]);
    assert_eq!(delivery(lab.guest()), before);
}
