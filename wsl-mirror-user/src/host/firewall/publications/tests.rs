//! Forms of rules.

mod cost;
mod samples;

use std::fmt::Write as _;

use Protocol::{Tcp, Udp};

use super::super::{parse_iptables, parse_nft};
use super::*;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const DOCKERS: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

fn iptables(text: &str) -> Publications {
    Publications::of(&parse_iptables(text, "iptables-legacy").unwrap(), "loopback0")
}

/// These rules in chains of nat, which every packet to this machine goes through.
fn nat(rules: &str) -> Publications {
    iptables(&format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n:OTHER - [0:0]\n:EMPTY - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n{rules}\nCOMMIT\n"
    ))
}

/// These rules in PREROUTING of raw and mangle.
fn raw(rules: &str) -> Publications {
    let chains = ":PREROUTING ACCEPT [0:0]\n:OTHER - [0:0]";
    let (of_raw, of_mangle) = rules.split_once("*mangle").unwrap_or((rules, ""));
    iptables(&format!("*raw\n{chains}\n{of_raw}\nCOMMIT\n*mangle\n{chains}\n{of_mangle}\nCOMMIT\n"))
}

/// What is at this address, as an answer.
#[expect(clippy::unnecessary_wraps, reason = "the answers that are compared with it may be none")]
fn at(address: Ipv4Addr, port: u16) -> Option<(Ipv4Addr, u16)> {
    Some((address, port))
}

/// Where `-p tcp --dport 8000:8010 -j DNAT` with this destination leads for these ports.
#[track_caller]
fn assert_leads(destination: &str, expected: [(u16, Option<u16>); 3]) {
    let publications = nat(&format!("-A DOCKER -p tcp -m tcp --dport 8000:8010 -j DNAT {destination}"));
    for (port, target) in expected {
        let expected = target.map(|port| (DOCKERS, port));
        assert_eq!(publications.target_of(Tcp, ANY, port), expected, "{destination} {port}");
    }
}

#[test]
fn only_a_destination_that_the_rule_tells_is_a_target() {
    assert_leads("--to-destination 172.17.0.2:80", [(8000, Some(80)), (8010, Some(80)), (8011, None)]);
    assert_leads("--to 172.17.0.2:80", [(8000, Some(80)), (8010, Some(80)), (7999, None)]);
    assert_leads("--to-destination 172.17.0.2", [(8000, Some(8000)), (8010, Some(8010)), (8011, None)]);
    assert_leads("--to-destination 172.17.0.2:80-80", [(8000, Some(80)), (8010, Some(80)), (8011, None)]);
    let shifted = "--to-destination 172.17.0.2:9000-9009/8000";
    assert_leads(shifted, [(8000, Some(9000)), (8009, Some(9009)), (8010, None)]);
    assert_leads(
        "--to-destination 172.17.0.2:9000-9010/8002",
        [(8001, None), (8002, Some(9000)), (8010, Some(9008))],
    );
    assert_leads(
        "--to-destination 172.17.0.2:65530-65535/8000",
        [(8005, Some(65535)), (8006, None), (8010, None)],
    );
    for unclear in [
        "--to-destination 172.17.0.2:9000-9010",
        "--to-destination 172.17.0.2-172.17.0.9:80",
        "--to-destination 172.17.0.2:80 --to-destination 172.17.0.3:80",
        "--to-destination 127.0.0.1:80",
        "--to-destination 0.0.0.0:80",
        "--to-destination :80",
        "--to-destination 172.17.0.2:0",
        "--to-destination [fd00::2]:80",
        "--to-destination nonsense",
        "--to-destination",
        "",
    ] {
        assert_leads(unclear, [(8000, None), (8005, None), (8010, None)]);
    }
}

#[test]
fn a_publication_is_for_its_own_ports() {
    for (ports, inside, outside) in [
        ("-p tcp -m tcp --dport 8000", [8000, 8000], [7999, 8001]),
        ("-p tcp -m tcp --dport 8000:8010", [8000, 8010], [7999, 8011]),
        ("-p tcp -m tcp --dport 8000:65535", [8000, 65535], [7999, 1]),
        ("-p tcp -m tcp ! --dport 1:7999", [8000, 65535], [7999, 1]),
        ("-p tcp -m multiport --dports 80,443,8000:8010", [443, 8010], [81, 8011]),
        ("-p tcp -m multiport ! --dports 80,443", [81, 8010], [80, 443]),
        ("-p tcp", [1, 65535], [0, 0]),
    ] {
        let publications = nat(&format!("-A DOCKER {ports} -j DNAT --to-destination 172.17.0.2:80"));
        for port in inside {
            assert_eq!(publications.target_of(Tcp, ANY, port), at(DOCKERS, 80), "{ports} {port}");
            assert_eq!(publications.target_of(Udp, ANY, port), None, "{ports} {port}");
        }
        if outside != [0, 0] {
            let found = outside.map(|port| publications.target_of(Tcp, ANY, port));
            assert_eq!(found, [None; 2], "{ports}");
        }
    }
    for protocol in ["sctp -m sctp", "icmp"] {
        let publications = nat(&format!("-A DOCKER -p {protocol} -j DNAT --to-destination 172.17.0.2:80"));
        assert_eq!([Tcp, Udp].map(|protocol| publications.target_of(protocol, ANY, 80)), [None; 2]);
    }
}

/// The target of 8080 under these rules.
fn target(rules: &str) -> Option<u8> {
    let target = nat(rules).target_of(Tcp, ANY, 8080);
    target.map(|(address, port)| {
        assert_eq!(port, 80);
        address.octets()[3]
    })
}

#[test]
fn the_first_of_two_rules_is_the_publication() {
    let to = |chain: &str, conditions: &str, last: u8| {
        format!(
            "-A {chain} -p tcp -m tcp --dport 8080 {conditions} -j DNAT --to-destination 172.17.0.{last}:80\n"
        )
    };
    let [first, second] = [to("DOCKER", "", 2), to("DOCKER", "", 3)];
    assert_eq!(target(&format!("{first}{second}")), Some(2));
    assert_eq!(target(&format!("{second}{first}")), Some(3));
    // A rule for many ports has its place among those for one.
    let for_all = "-A DOCKER -p tcp -j DNAT --to-destination 172.17.0.4:80\n";
    assert_eq!(target(&format!("{for_all}{second}")), Some(4));
    assert_eq!(target(&format!("{second}{for_all}")), Some(3));
    // What is for other packets is passed by.
    for other in
        ["-i eth0", "! -i loopback0", "-s 10.88.0.0/16", "-d 192.168.50.10/32", "! -d 127.0.0.0/8", "-o lo"]
    {
        assert_eq!(target(&format!("{}{second}", to("DOCKER", other, 2))), Some(3), "{other}");
    }
    // What may be for it leaves it open.
    let perhaps = to("DOCKER", "-m set --match-set friends src", 2);
    assert_eq!(target(&perhaps), None);
    assert_eq!(target(&format!("{perhaps}{second}")), None);
    assert_eq!(target(&format!("{perhaps}{first}")), Some(2), "both say the same");
    for unclear in [
        "-j REDIRECT --to-ports 80",
        "-j NETMAP --to 10.0.0.0/8",
        "-j DNAT --to-destination 10.0.0.1-10.0.0.9",
    ] {
        assert_eq!(target(&format!("-A DOCKER -p tcp {unclear}\n{first}")), None, "{unclear}");
    }
    // Swarm's chain comes before.
    let swarm =
        "-A OTHER -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.9:80\n-A OTHER -j RETURN\n";
    assert_eq!(target(&format!("-A DOCKER -j OTHER\n{swarm}{first}")), Some(9));
}

#[test]
fn a_verdict_in_front_of_a_publication_hides_it() {
    let publication = "-A DOCKER -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";
    for (rule, expected) in [
        ("-A DOCKER -j RETURN", None),
        ("-A DOCKER -j ACCEPT", None),
        ("-A DOCKER -m mark --mark 1 -j RETURN", None),
        ("-A DOCKER -d 127.0.0.1/32 -j RETURN", None),
        ("-A DOCKER -g EMPTY", None),
        ("-A OTHER -j ACCEPT\n-A DOCKER -j OTHER", None),
        ("-A DOCKER -i docker0 -j RETURN", Some(2)),
        ("-A DOCKER -d 192.168.50.10/32 -j RETURN", Some(2)),
        ("-A DOCKER -p udp -j ACCEPT", Some(2)),
        ("-A DOCKER -j LOG", Some(2)),
        ("-A DOCKER -j EMPTY", Some(2)),
        ("-A DOCKER -m mark --mark 1 -j EMPTY", Some(2)),
        ("-A OTHER -j RETURN\n-A DOCKER -j OTHER", Some(2)),
        ("-A OTHER -m mark --mark 1 -j RETURN\n-A DOCKER -j OTHER", Some(2)),
        // Docker's own for WSL, and what people write for it.
        ("-A DOCKER -d 127.0.0.0/8 -i loopback0 -j RETURN", Some(2)),
        ("-A DOCKER -i loopback0 -j ACCEPT", Some(2)),
    ] {
        assert_eq!(target(&format!("{rule}\n{publication}")), expected, "{rule}");
    }
}

#[test]
fn a_rule_counts_where_packets_come_by() {
    let rule = "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";
    assert_eq!(target(&format!("-A PREROUTING {rule}")), Some(2));
    assert_eq!(target(&format!("-A OTHER {rule}\n-A DOCKER -g OTHER")), Some(2));
    assert_eq!(target(&format!("-A OTHER {rule}")), None, "nobody jumps there");
    assert_eq!(target(&format!("-A OUTPUT {rule}")), None);
    assert_eq!(target(&format!("-A OTHER {rule}\n-A OUTPUT -j OTHER")), None);
    let elsewhere = format!("*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n");
    assert_eq!(iptables(&elsewhere).target_of(Tcp, ANY, 8080), None);
}

/// The target of 8080 under these nftables.
fn target_of_nft(items: &[serde_json::Value]) -> Option<(Ipv4Addr, u16)> {
    let text = serde_json::json!({"nftables": items}).to_string();
    Publications::of(&parse_nft(&text).unwrap(), "loopback0").target_of(Tcp, ANY, 8080)
}

/// A base chain of nat, and a rule in it.
fn base(family: &str, name: &str, priority: i64, rule: &serde_json::Value) -> [serde_json::Value; 2] {
    use serde_json::json;
    [
        json!({"chain": {"family": family, "table": "t", "name": name, "type": "nat", "hook": "prerouting",
                         "prio": priority, "policy": "accept"}}),
        json!({"rule": {"family": family, "table": "t", "chain": name, "handle": 7, "expr": rule}}),
    ]
}

fn is(left: &serde_json::Value, right: &serde_json::Value) -> serde_json::Value {
    serde_json::json!({"match": {"op": "==", "left": left, "right": right}})
}

#[test]
fn every_form_of_nfts_dnat_is_understood_or_none() {
    use serde_json::json;
    let field = |protocol: &str, name: &str| json!({"payload": {"protocol": protocol, "field": name}});
    let (of_tcp, of_any) = (field("tcp", "dport"), field("th", "dport"));
    let layer_4 = json!({"meta": {"key": "l4proto"}});
    let port = |value: serde_json::Value| is(&of_tcp, &value);
    let transport = is(&of_any, &json!(8080));
    let tcp = is(&layer_4, &json!({"set": ["tcp", 17]}));
    let dnat = json!({"dnat": {"addr": "172.17.0.2", "port": 80}});
    let concat = is(&json!({"concat": [layer_4, of_any]}), &json!({"concat": ["tcp", 8080]}));
    let by_map = |elements: serde_json::Value| json!({"vmap": {"key": of_tcp, "data": {"set": elements}}});
    for (rule, expected) in [
        (json!([port(json!(8080)), dnat]), at(DOCKERS, 80)),
        (json!([port(json!({"range": [8000, 8100]})), dnat]), at(DOCKERS, 80)),
        (json!([port(json!({"set": [80, {"range": [8000, 8100]}]})), dnat]), at(DOCKERS, 80)),
        (json!([port(json!({"set": [80, 8081]})), dnat]), None),
        (json!([port(json!("@ports")), dnat]), at(DOCKERS, 80)),
        (json!([port(json!(8081)), dnat]), None),
        (json!([tcp, transport, dnat]), at(DOCKERS, 80)),
        (json!([concat, dnat]), at(DOCKERS, 80)),
        (json!([{"counter": null}, {"log": null}, dnat]), at(DOCKERS, 80)),
        (json!([{"dnat": {"family": "ip", "addr": "172.17.0.2", "port": 80}}]), at(DOCKERS, 80)),
        (json!([{"dnat": {"addr": "172.17.0.2"}}]), at(DOCKERS, 8080)),
        (json!([{"dnat": {"addr": "172.17.0.2", "port": 80, "flags": "random"}}]), at(DOCKERS, 80)),
        (json!([{"dnat": {"addr": "172.17.0.2", "port": {"range": [80, 90]}}}]), None),
        (json!([{"dnat": {"addr": {"range": ["172.17.0.2", "172.17.0.9"]}, "port": 80}}]), None),
        (
            json!([{"dnat": {"addr": {"map": {"key": {"numgen": {"mode": "random", "mod": 2, "offset": 0}},
            "data": {"set": [[0, "172.17.0.2"], [1, "172.17.0.3"]]}}}, "port": 80}}]),
            None,
        ),
        (json!([{"dnat": {"port": 80}}]), None),
        (json!([{"dnat": null}]), None),
        (json!([{"limit": {"rate": 4, "per": "second"}}, dnat]), None),
        (json!([{"redirect": {"port": 80}}]), None),
        (
            json!([by_map(json!([[8080, {"jump": {"target": "there"}}], [80, {"drop": null}]]))]),
            at(DOCKERS, 80),
        ),
        (json!([by_map(json!([[8081, {"jump": {"target": "there"}}]]))]), None),
        (json!([by_map(json!("@map"))]), None),
    ] {
        let mut items = vec![
            json!({"set": {"family": "inet", "table": "t", "name": "ports", "elem": [1, {"range": [8080, 8090]}]}}),
            json!({"chain": {"family": "inet", "table": "t", "name": "there"}}),
            json!({"rule": {"family": "inet", "table": "t", "chain": "there", "expr": [dnat]}}),
        ];
        items.extend(base("inet", "c", -100, &rule));
        assert_eq!(target_of_nft(&items), expected, "{rule}");
    }
}

#[test]
fn a_container_of_ipv6_is_no_target_and_hides_none() {
    use serde_json::json;
    for dnat in [
        json!([{"dnat": {"family": "ip6", "addr": "fd00::2", "port": 80}}]),
        json!([{"dnat": {"addr": "fd00::2", "port": 80}}]),
    ] {
        let mut items = base("inet", "c", -100, &dnat).to_vec();
        assert_eq!(target_of_nft(&items), None);
        items.push(json!({"rule": {"family": "inet", "table": "t", "chain": "c",
                                   "expr": [{"dnat": {"family": "ip", "addr": "172.17.0.2", "port": 80}}]}}));
        assert_eq!(target_of_nft(&items), at(DOCKERS, 80));
    }
    let of_ipv4 = json!([{"dnat": {"addr": "172.17.0.2", "port": 80}}]);
    assert_eq!(target_of_nft(&base("ip6", "c", -100, &of_ipv4)), None);
}

#[test]
fn base_chains_are_called_by_their_priority() {
    use serde_json::json;
    let to = |last: u8| json!([{"dnat": {"addr": format!("172.17.0.{last}"), "port": 80}}]);
    let with = |chains: [(i64, serde_json::Value); 2]| {
        let [(one, first), (another, second)] = chains;
        let items = [base("ip", "one", one, &first), base("ip", "another", another, &second)].concat();
        target_of_nft(&items).map(|(address, _)| address.octets()[3])
    };
    assert_eq!(with([(-100, to(2)), (-101, to(3))]), Some(3));
    assert_eq!(with([(-101, to(2)), (-100, to(3))]), Some(2));
    assert_eq!(with([(-100, to(2)), (-100, to(2))]), Some(2));
    assert_eq!(with([(-100, to(2)), (-100, to(3))]), None, "nobody tells their order");
    // What is accepted in one goes on to the next.
    assert_eq!(with([(-101, json!([{"accept": null}])), (-100, to(3))]), Some(3));
    assert_eq!(with([(-100, json!([{"accept": null}])), (-100, to(3))]), Some(3));
    assert_eq!(with([(-101, json!([{"drop": null}])), (-100, to(3))]), None);
}

#[test]
fn only_dockers_own_drop_is_reported() {
    const DOCKERS_DROP: &str = "-A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP";
    let is_dropped = |rules: &str| raw(rules).is_dropped(Tcp, 8080);
    assert!(is_dropped(DOCKERS_DROP));
    assert!(!raw(DOCKERS_DROP).is_dropped(Tcp, 8081) && !raw(DOCKERS_DROP).is_dropped(Udp, 8080));
    // The user's: each of these closes the port for a direct flow as well, or is nothing that Docker writes.
    for rule in [
        "-A PREROUTING -i loopback0 -p tcp -m tcp --dport 8080 -j DROP",
        "-A PREROUTING -p tcp -m tcp --dport 8080 -j DROP",
        "-A PREROUTING -d 127.0.0.0/8 ! -i lo -p tcp -m tcp --dport 8080 -j DROP",
        "-A PREROUTING ! -i lo -p tcp -m tcp --dport 8080 -j DROP",
        "-A PREROUTING -d 127.0.0.1/32 -i loopback0 -p tcp -m tcp --dport 8080 -j DROP",
        "-A PREROUTING -d 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j DROP",
        "-A PREROUTING -s 127.0.0.1/32 -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP",
        "-A PREROUTING -d 127.0.0.1/32 ! -i lo -j DROP",
        "-A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -m mark --mark 1 -j DROP",
        "-A PREROUTING -j DROP",
    ] {
        assert!(!is_dropped(rule), "{rule}");
    }
    assert!(is_dropped(
        "-A PREROUTING -j OTHER\n-A OTHER -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP"
    ));
    assert!(is_dropped(&format!("*mangle\n{DOCKERS_DROP}")), "also before NAT");
    let nat = format!("*nat\n:PREROUTING ACCEPT [0:0]\n{DOCKERS_DROP}\nCOMMIT\n");
    assert!(!iptables(&nat).is_dropped(Tcp, 8080), "not before NAT");
}

#[test]
fn what_comes_before_dockers_drop_decides() {
    const DOCKERS_DROP: &str = "-A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP";
    for (rule, expected) in [
        ("-A PREROUTING -d 127.0.0.1/32 -i loopback0 -p tcp -m tcp --dport 8080 -j ACCEPT", false),
        ("-A PREROUTING -i loopback0 -j ACCEPT", false),
        ("-A PREROUTING -i loopback0 -j RETURN", false),
        ("-A PREROUTING -j OTHER\n-A OTHER -i loop+ -j ACCEPT", false),
        ("-A PREROUTING -m mark --mark 1 -j ACCEPT", false),
        ("-A PREROUTING -j DROP", false),
        ("-A PREROUTING -d 127.0.0.1/32 -i loopback0 -p udp -m udp --dport 8080 -j ACCEPT", true),
        ("-A PREROUTING -d 127.0.0.1/32 -i loopback0 -p tcp -m tcp --dport 8081 -j ACCEPT", true),
        ("-A PREROUTING -i lo -j ACCEPT", true),
        ("-A PREROUTING -i loopback1 -j ACCEPT", true),
        ("-A PREROUTING -m mark --mark 1 -j DROP", true),
        ("-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP", true),
        ("-A PREROUTING -p tcp -j LOG", true),
        ("-A PREROUTING -j OTHER\n-A OTHER -i loopback0 -j RETURN", true),
    ] {
        let found = raw(&format!("{rule}\n{DOCKERS_DROP}")).is_dropped(Tcp, 8080);
        assert_eq!(found, expected, "{rule}");
        let behind = raw(&format!("{DOCKERS_DROP}\n{rule}")).is_dropped(Tcp, 8080);
        assert!(behind, "behind it: {rule}");
    }
    // Who is accepted in raw still meets mangle.
    assert!(
        raw(&format!("-A PREROUTING -i loopback0 -j ACCEPT\n*mangle\n{DOCKERS_DROP}")).is_dropped(Tcp, 8080)
    );
    assert!(!raw(&format!("-A PREROUTING -j DROP\n*mangle\n{DOCKERS_DROP}")).is_dropped(Tcp, 8080));
}

#[test]
fn chains_without_an_end_make_no_publication() {
    let dnat = "-A DOCKER -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";
    assert_eq!(target(&format!("-A DOCKER -j DOCKER\n{dnat}")), None);
    assert_eq!(target(&format!("-A DOCKER -j OTHER\n-A OTHER -j DOCKER\n{dnat}")), None);
    // Each chain jumps to the next one several times, and so far down that no kernel would have it.
    let mut text = "*nat\n:PREROUTING ACCEPT [0:0]\n".to_owned();
    (0..10_000).for_each(|n| writeln!(text, ":{n} - [0:0]").unwrap());
    text.push_str("-A PREROUTING -j 0\n");
    (0..9_999).for_each(|n| (0..3).for_each(|_| writeln!(text, "-A {n} -j {}", n + 1).unwrap()));
    text.push_str("-A 9999 -p tcp -j DNAT --to-destination 172.17.0.2:80\nCOMMIT\n");
    assert_eq!(iptables(&text).target_of(Tcp, ANY, 8080), None);
}
