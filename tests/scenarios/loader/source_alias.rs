//! The source alias' route and policy route rules: made, kept, adopted, removed, and refused where somebody else uses the
//! address.

use wsl_mirror_lab::{
    HalfMade, Lab,
    checks::{OrPanic as _, config, ifindex, network, ok, ok_in, refused, sh, status, terminate},
    nat,
};

use crate::guest::{everything, unchanged};

/// What a load adds on a lab with this gateway, as `ip` shows it.
fn objects(gateway: &str) -> [String; 4] {
    [
        "0:\tfrom 192.0.0.8 iif loopback0 goto 1 proto 119".to_owned(),
        "0:\tfrom 192.0.0.8 blackhole proto 119".to_owned(),
        "2:\tfrom all to 192.0.0.8 blackhole proto 119".to_owned(),
        format!("192.0.0.8 via {gateway} dev loopback0 table 127 proto 119 onlink"),
    ]
}

/// Policy route rules and routes, in their order.
#[track_caller]
fn routing(lab: &Lab) -> Vec<String> {
    // The kernel notices a new link's carrier up to a second later (`linkwatch`).
    let text = sh(lab, "ip -4 rule; ip -4 route show table all | sed 's/ linkdown//'");
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// The lines with our protocol number.
#[track_caller]
fn ours(lab: &Lab) -> Vec<String> {
    routing(lab).into_iter().filter(|line| line.contains("proto 119")).collect()
}

#[track_caller]
fn is_complete(lab: &Lab) {
    assert_eq!(ours(lab), objects(&lab.gateway().to_string()));
    let (status, _) = status(lab);
    let expected =
        serde_json::json!({"address": "192.0.0.8", "route": true, "rules": true, "obstacle": null});
    assert_eq!(status["source_alias"], expected);
}

#[test]
fn a_load_adds_three_rules_and_a_route_and_nothing_else() {
    let lab = Lab::builder().build().unwrap();
    let before = routing(&lab);
    assert_eq!(ok(&lab, &["load"]).stderr, "");
    let (new, old): (Vec<_>, Vec<_>) = routing(&lab).into_iter().partition(|line| !before.contains(line));
    assert_eq!((new, old), (objects(&lab.gateway().to_string()).to_vec(), before.clone()));
    is_complete(&lab);
    let loaded = routing(&lab);
    assert_eq!(ok(&lab, &["load"]).stderr, "");
    assert_eq!(routing(&lab), loaded, "the second load changes nothing");
    ok(&lab, &["unload"]);
    assert_eq!(routing(&lab), before, "unload leaves nothing");
}

#[test]
fn a_dry_run_prints_changes_of_routing_and_makes_none() {
    let lab = Lab::builder().build().unwrap();
    let before = everything(&lab);
    let steps = |lab: &Lab| {
        let text = ok(lab, &["load", "--dry-run"]).stdout;
        let lines = text.lines().filter(|line| line.contains("192.0.0.8") && !line.contains("SETTINGS"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        steps(&lab),
        [
            "add the policy route rule `pref 0 from 192.0.0.8 iif loopback0 goto 1`".to_owned(),
            "add the policy route rule `pref 0 from 192.0.0.8 blackhole`".to_owned(),
            "add the policy route rule `pref 2 to 192.0.0.8 blackhole`".to_owned(),
            format!("add the route `192.0.0.8/32 via {} dev loopback0 table 127`", lab.gateway()),
        ]
    );
    unchanged(&lab, &before);
    ok(&lab, &["load"]);
    assert_eq!(steps(&lab), [""; 0]);
    sh(&lab, "ip rule del pref 0 from 192.0.0.8 iif loopback0");
    // The blackhole's place is behind the goto.
    assert_eq!(
        steps(&lab),
        [
            "add the policy route rule `pref 0 from 192.0.0.8 iif loopback0 goto 1`",
            "add the policy route rule `pref 0 from 192.0.0.8 blackhole`",
            "remove the policy route rule `pref 0 from 192.0.0.8 blackhole`",
        ]
    );
    ok(&lab, &["load"]);
    is_complete(&lab);
}

#[test]
fn what_a_terminated_distribution_left_is_adopted_or_removed() {
    let lab = Lab::builder().build().unwrap();
    let before = network(lab.guest());
    for adopts in [true, false] {
        let other = lab.another_distribution().unwrap();
        ok_in(&lab, &other, &["load"]);
        terminate(&other);
        assert_eq!(ours(&lab), objects(&lab.gateway().to_string()), "they outlive the distribution");
        if adopts {
            ok(&lab, &["load"]);
            is_complete(&lab);
        }
        ok(&lab, &["unload"]);
        assert_eq!(network(lab.guest()), before);
    }
    // The same in one distribution: its pins are gone.
    ok(&lab, &["load"]);
    terminate(lab.guest());
    ok(&lab, &["unload"]);
    assert_eq!(network(lab.guest()), before);
}

#[test]
fn objects_that_do_not_fit_are_replaced() {
    for left in [
        "ip rule add pref 0 from 192.0.2.1 iif loopback0 goto 1 protocol 119",
        "ip rule add pref 0 from 192.0.0.8 iif eth0 goto 1 protocol 119",
        "ip rule add pref 0 from 192.0.0.8 blackhole protocol 119; ip rule add pref 7 to 192.0.0.8 blackhole protocol 119",
        "ip rule add pref 2 to 192.0.0.8 fwmark 1 blackhole protocol 119",
        "ip route add 192.0.2.1/32 via $GW dev loopback0 onlink table 127 protocol 119",
        "ip route add 192.0.0.8/32 via 169.254.73.1 dev loopback0 onlink table 127 protocol 119",
        "ip route add 192.0.0.8/32 dev eth0 table main protocol 119",
        "ip route add blackhole 192.0.0.8/32 table 99 protocol 119",
    ] {
        let lab = Lab::builder().build().unwrap();
        let before = network(lab.guest());
        let left = left.replace("$GW", &lab.gateway().to_string());
        sh(&lab, &left);
        ok(&lab, &["load"]);
        is_complete(&lab);
        // Where the load has made the very same, there is nothing to add.
        sh(&lab, &format!("{} || true", left.replace("; ", " || true; ")));
        ok(&lab, &["unload"]);
        assert_eq!(network(lab.guest()), before, "{left}");
    }
}

#[test]
fn a_distribution_that_does_not_steer_leaves_them_alone() {
    let lab = Lab::builder().build().unwrap();
    let other = lab.another_distribution().unwrap();
    ok(&lab, &["load"]);
    let loaded = network(lab.guest());
    for command in ["load", "unload"] {
        let finished = lab.wsl_mirror_in(&other, &[command]).unwrap();
        assert_eq!(finished.status.code(), Some(if command == "load" { 20 } else { 0 }), "{finished}");
        assert_eq!(network(lab.guest()), loaded, "{command}");
    }
    is_complete(&lab);
    // One with pins of its own, whose interface has gone: the first one steers the new one.
    ok(&lab, &["unload"]);
    ok_in(&lab, &other, &["load"]);
    lab.recreate_loopback0().unwrap();
    ok(&lab, &["load"]);
    is_complete(&lab);
    ok_in(&lab, &other, &["unload"]);
    is_complete(&lab);
}

/// Two set-ups with `ip`, and words of the refusal.
const USED: [(&str, &str); 7] = [
    ("ip addr add 192.0.0.8/32 dev eth0", "it is an address of eth0"),
    (
        "ip link add down0 type veth peer name down1; ip addr add 192.0.0.8/32 dev down0",
        "it is an address of down0",
    ),
    ("ip route add 192.0.0.8/32 dev eth0", "the route `192.0.0.8/32 dev eth0 table 254` covers it"),
    ("ip route add 192.0.0.0/24 via 192.168.50.1 dev eth0", "via 192.168.50.1 dev eth0 table 254` covers it"),
    ("ip route add 192.0.0.0/28 dev eth0 table 5000", "table 5000` covers it"),
    ("ip route add 192.0.0.8/32 via 169.254.73.1 dev loopback0 onlink table 127", "table 127` covers it"),
    ("ip route add unreachable 192.0.0.0/8", "the route `unreachable 192.0.0.0/8 table 254` covers it"),
];

#[test]
fn a_source_alias_in_others_use_is_refused() {
    for (used, words) in USED {
        let lab = Lab::builder().build().unwrap();
        sh(&lab, used);
        let before = everything(&lab);
        for arguments in [["load"].as_slice(), &["load", "--dry-run"]] {
            let said = refused(&lab, arguments, 6);
            assert!(said.contains(words) && said.contains("source_alias = \"192.0.0.8\""), "{used}: {said}");
            unchanged(&lab, &before);
        }
        let other = config(&lab, "source_alias = \"198.18.0.1\"\n");
        ok(&lab, &["load", "--config", &other]);
        assert_eq!(status(&lab).0["source_alias"]["route"], true, "{used}");
        ok(&lab, &["unload"]);
        unchanged(&lab, &before);
    }
}

#[test]
fn a_source_alias_that_comes_into_use_is_told_by_status() {
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    sh(&lab, "ip route add 192.0.0.0/24 dev eth0");
    let (status, _) = status(&lab);
    let obstacle = status["source_alias"]["obstacle"].as_str().unwrap_or_default();
    assert!(obstacle.contains("`192.0.0.0/24 dev eth0 table 254` covers it"), "{status}");
    let before = everything(&lab);
    refused(&lab, &["load"], 6);
    unchanged(&lab, &before);
}

#[test]
fn default_routes_do_not_use_the_source_alias() {
    let lab = Lab::builder().build().unwrap();
    // A VPN's policy table, and OpenVPN's `redirect-gateway def1`.
    sh(
        &lab,
        "ip route add default dev eth0 table 51820; ip rule add pref 100 lookup 51820; \
         ip route add 0.0.0.0/1 dev eth0; ip route add 128.0.0.0/1 dev eth0",
    );
    assert_eq!(ok(&lab, &["load"]).stderr, "");
    is_complete(&lab);
    let way = sh(&lab, "ip route get 192.0.0.8 ipproto tcp sport 1 dport 2");
    assert!(way.contains("dev loopback0"), "{way}");
    for other in ["icmp", "sctp"] {
        let way = lab.guest().run("ip", ["route", "get", "192.0.0.8", "ipproto", other]);
        assert!(way.is_err(), "{other}: {way:?}");
    }
}

#[test]
fn another_source_alias_is_taken_by_unload_and_load() {
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    let other = config(&lab, "source_alias = \"198.18.0.1\"\n");
    let before = everything(&lab);
    let said = refused(&lab, &["load", "--config", &other], 6);
    assert!(
        ["source_alias = \"198.18.0.1\"", "192.0.0.8", "unload"].iter().all(|word| said.contains(word)),
        "{said}"
    );
    unchanged(&lab, &before);
    ok(&lab, &["unload"]);
    ok(&lab, &["load", "--config", &other]);
    let ours = ours(&lab);
    assert!(ours.len() == 4 && ours.iter().all(|line| line.contains("198.18.0.1")), "{ours:?}");
}

#[test]
fn without_a_gateway_a_load_makes_none_and_says_so() {
    let lab = Lab::builder().half_made(HalfMade::NoTable127).build().unwrap();
    let before = routing(&lab);
    let said = ok(&lab, &["load"]).stderr;
    assert!(
        said.contains(
            "no flow goes direct until the next load: table 127 has no route to 127.0.0.1 by loopback0"
        ),
        "{said}"
    );
    assert_eq!(routing(&lab), before);
    let text = ok(&lab, &["status"]).stdout;
    assert!(text.contains("\nsource   192.0.0.8: no flow goes direct, "), "{text}");
    lab.complete_network(HalfMade::NoTable127).unwrap();
    assert_eq!(ok(&lab, &["load"]).stderr, "");
    is_complete(&lab);
}

#[test]
fn a_route_that_a_link_took_away_comes_with_the_next_load() {
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    let whole = routing(&lab);
    let route = sh(&lab, "ip -4 route show table 127 proto kernel");
    sh(&lab, "ip link set loopback0 down; ip link set loopback0 up");
    assert_eq!(ours(&lab), objects("")[..3], "rules outlive the link");
    let text = ok(&lab, &["status"]).stdout;
    assert!(text.contains("\nsource   192.0.0.8: no flow goes direct, its route is missing\n"), "{text}");
    // While the link has no gateway, a load leaves the rules.
    ok(&lab, &["load"]);
    assert_eq!(ours(&lab), objects("")[..3]);
    sh(&lab, &format!("ip route add {} table 127", route.trim()));
    ok(&lab, &["load"]);
    is_complete(&lab);
    assert_eq!(routing(&lab).len(), whole.len());
}

#[test]
fn an_interface_made_anew_gets_a_route_of_its_own() {
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    let before = ifindex(lab.guest(), "loopback0");
    lab.recreate_loopback0().unwrap();
    assert_ne!(ifindex(lab.guest(), "loopback0"), before);
    ok(&lab, &["load"]);
    is_complete(&lab);
    lab.make_network_anew().unwrap();
    ok(&lab, &["load"]);
    is_complete(&lab);
}

#[test]
fn unload_goes_on_where_somebody_removed_a_part() {
    let lab = Lab::builder().build().unwrap();
    let before = network(lab.guest());
    for part in [
        "ip route del 192.0.0.8/32 table 127",
        "ip rule del pref 0 from 192.0.0.8 iif loopback0",
        "ip rule del pref 2 to 192.0.0.8; ip rule del pref 0 from 192.0.0.8 iif loopback0",
    ] {
        ok(&lab, &["load"]);
        sh(&lab, part);
        ok(&lab, &["unload"]);
        assert_eq!(network(lab.guest()), before, "{part}");
    }
    // Rules and routes of others about the same address are theirs.
    ok(&lab, &["load"]);
    sh(&lab, "ip rule add pref 9 from 192.0.0.8 lookup 99; ip route add 192.0.0.8/32 dev eth0 table 99");
    ok(&lab, &["unload"]);
    let after = routing(&lab);
    let theirs: Vec<_> = after.iter().filter(|line| line.contains("192.0.0.8")).collect();
    assert_eq!(theirs, ["9:\tfrom 192.0.0.8 lookup 99", "192.0.0.8 dev eth0 table 99 scope link"]);
}

#[test]
fn unload_counts_and_deletes_direct_flows() {
    let lab = Lab::builder().build().unwrap();
    ok(&lab, &["load"]);
    let insert = |what: &str| nat::conntrack_insert(lab.guest(), &format!("{what} --timeout 600")).or_panic();
    let tcp = "-p tcp --state ESTABLISHED -u ASSURED,SEEN_REPLY";
    insert(&format!("{tcp} -s 192.0.0.8 -d 127.119.0.1 --sport 50000 --dport 8080 --dst-nat 172.17.0.2:80"));
    insert(
        "-p udp -u SEEN_REPLY -s 192.0.0.8 -d 127.119.0.1 --sport 50000 --dport 8081 --dst-nat 172.17.0.2:81",
    );
    let theirs = format!("{tcp} -s 192.0.0.8 -d 10.0.0.1 --sport 50000 --dport 8080");
    insert(&theirs);
    assert_eq!(ok(&lab, &["unload"]).stderr, "wsl-mirror: ended 2 carried flows\n");
    let left = nat::conntrack_with(lab.guest(), &["src=192.0.0.8"]).unwrap();
    assert!(left.len() == 1 && left[0].contains("dst=10.0.0.1"), "{left:?}");
}
