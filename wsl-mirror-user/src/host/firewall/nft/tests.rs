use std::net::Ipv4Addr;

use super::super::obstacles::{Obstacle, of_rules};
use super::conditions::addresses;
use super::*;
use serde_json::json;

#[test]
fn addresses_are_read_as_ranges() {
    let range = |value| addresses(&value).map(|range| range.map(Ipv4Addr::from).collect::<Vec<_>>());
    assert_eq!(range(json!("127.0.0.1")), Some(vec![Ipv4Addr::LOCALHOST]));
    let net = addresses(&json!({"prefix": {"addr": "127.0.0.0", "len": 8}})).unwrap();
    assert_eq!((*net.start(), *net.end()), (0x7f00_0000, 0x7fff_ffff));
    assert_eq!(addresses(&json!({"prefix": {"addr": "0.0.0.0", "len": 0}})), Some(0..=u32::MAX));
    assert_eq!(addresses(&json!({"prefix": {"addr": "0.0.0.0", "len": 33}})), None);
    assert_eq!(
        addresses(&json!({"prefix": {"addr": "1.2.3.4", "len": 32}})),
        Some(0x0102_0304..=0x0102_0304)
    );
    assert_eq!(addresses(&json!("localhost")), None);
}

/// The rules in nft's own words, of a chain on this hook in front of conntrack.
fn read(hook: &str, sets: &[Value], rules: &[Value]) -> Ruleset {
    let in_table = |mut object: Value| {
        object["family"] = "inet".into();
        object["table"] = "t".into();
        object
    };
    let chain = json!({"name": "c", "type": "filter", "hook": hook, "prio": -300, "policy": "accept"});
    let mut items = vec![json!({"chain": in_table(chain)})];
    items.extend(sets.iter().map(|set| json!({"set": in_table(set.clone())})));
    items.extend(
        rules.iter().map(|rule| json!({"rule": in_table(json!({"chain": "c", "handle": 7, "expr": rule}))})),
    );
    parse(&json!({"nftables": items}).to_string()).unwrap()
}

fn obstacles(hook: &str, rules: &[Value]) -> Vec<Obstacle> {
    of_rules(&read(hook, &[], rules), "loopback0", [127, 119, 0, 1])
}

/// Whether a rule of these statements untracks packets from Windows.
fn untracks(statements: &[Value]) -> bool {
    let mut rule = statements.to_vec();
    rule.push(json!({"notrack": null}));
    !obstacles("prerouting", &[json!(rule)]).is_empty()
}

fn is(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn of(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

#[test]
fn a_rule_that_untracks_is_found_by_its_handle() {
    let found = obstacles("prerouting", &[json!([{"notrack": null}])]);
    assert_eq!(found, [Obstacle::Untracked("nft inet t: chain c handle 7".into())]);
    assert_eq!(obstacles("forward", &[json!([{"notrack": null}])]), []);
}

#[test]
fn a_rule_that_sets_a_zone_is_found_in_each_of_its_forms() {
    let kind = json!({"fib": {"result": "type", "flags": ["daddr"]}});
    let by_map = json!({"map": {"key": meta("iifname"), "data": {"set": [["eth0", 1]]}}});
    for (ct, value) in [
        (json!({"key": "zone"}), json!(7)),
        (json!({"key": "zone", "dir": "original"}), json!(7)),
        (json!({"key": "zone"}), by_map),
    ] {
        let change = json!({"mangle": {"key": {"ct": ct}, "value": value}});
        for rule in [json!([change]), json!([is(&kind, &json!(2)), change])] {
            let found = obstacles("output", std::slice::from_ref(&rule));
            assert_eq!(found, [Obstacle::Zone("nft inet t: chain c handle 7".into())], "{rule}");
        }
    }
    let mark = json!({"mangle": {"key": {"ct": {"key": "mark"}}, "value": 7}});
    assert_eq!(obstacles("output", &[json!([mark])]), []);
}

#[test]
fn conditions_tell_other_packets_from_ours() {
    for (left, right, expected) in [
        (meta("iifname"), json!("loopback0"), true),
        (meta("iif"), json!("lo"), false),
        (meta("iifname"), json!({"set": ["eth0", "loop*"]}), true),
        (meta("oifname"), json!("loopback0"), false),
        (meta("nfproto"), json!(2), true),
        (meta("nfproto"), json!(10), false),
        (meta("protocol"), json!({"set": [8, 56710]}), true),
        (meta("protocol"), json!(56710), false),
        (meta("l4proto"), json!({"set": [6, 17]}), true),
        (meta("l4proto"), json!(1), false),
        (meta("mark"), json!(1), true),
        (of("ip", "daddr"), json!({"prefix": {"addr": "127.0.0.0", "len": 8}}), true),
        (of("ip", "daddr"), json!("10.0.0.1"), false),
        (of("ip", "saddr"), json!("127.0.0.1"), true),
        (of("ip6", "daddr"), json!("::1"), false),
        (of("icmp", "type"), json!(8), false),
        (of("udp", "dport"), json!(53), true),
        (json!({"&": [of("tcp", "flags"), {"|": [2, 16]}]}), json!(2), true),
        (json!({"concat": [of("ip6", "saddr"), of("tcp", "dport")]}), json!({"concat": ["::1", 80]}), false),
        (json!({"payload": {"tunnel": "vxlan", "protocol": "ip6", "field": "daddr"}}), json!("::1"), true),
    ] {
        assert_eq!(untracks(&[is(&left, &right)]), expected, "{left} {right}");
    }
}

#[test]
fn conditions_behind_a_statement_do_not_limit_it() {
    let on_eth0 = is(&meta("iifname"), &json!("eth0"));
    assert_eq!(obstacles("prerouting", &[json!([{"notrack": null}, on_eth0, {"accept": null}])]).len(), 1);
    assert_eq!(obstacles("prerouting", &[json!([on_eth0, {"notrack": null}, {"accept": null}])]).len(), 0);
}

#[test]
fn elements_of_named_sets_are_looked_at() {
    let rule = [json!([is(&of("ip", "daddr"), &json!("@s")), {"notrack": null}])];
    let with = |elem: Value| {
        let set = json!({"name": "s", "type": "ipv4_addr", "elem": elem});
        of_rules(&read("prerouting", &[set], &rule), "loopback0", [127, 119, 0, 1]).len()
    };
    assert_eq!(with(json!([{"prefix": {"addr": "127.0.0.0", "len": 8}}])), 1);
    assert_eq!(with(json!([{"elem": {"val": "127.119.0.1", "timeout": 9}}])), 1);
    assert_eq!(with(json!(["10.0.0.1"])), 0);
}

/// Whether a rule that comes first hides a `notrack` behind it.
fn hides(first: &Value) -> bool {
    obstacles("prerouting", &[first.clone(), json!([{"notrack": null}])]).is_empty()
}

#[test]
fn only_a_rule_that_ends_for_every_packet_hides_the_next() {
    let limit = json!({"limit": {"rate": 400, "burst": 5, "per": "second", "inv": true}});
    let source = of("ip", "saddr");
    for statement in [
        limit.clone(),
        json!({"quota": {"val": 100, "val_unit": "mbytes", "inv": true}}),
        json!({"ct count": {"val": 20, "inv": true}}),
        json!({"set": {"op": "update", "elem": source, "set": "@flood", "stmt": [limit]}}),
        json!({"meter": {"key": source, "stmt": limit, "size": 1024, "name": "m"}}),
        json!({"mangle": {"key": meta("mark"), "value": {"map": {"key": source, "data": "@m"}}}}),
        json!({"mangle": {"key": of("ip", "dscp"), "value": 1}}),
        json!({"something": "new"}),
    ] {
        assert!(!hides(&json!([statement, {"drop": null}])), "{statement}");
    }
    for statement in [
        json!({"counter": null}),
        json!({"log": {"prefix": "x"}}),
        json!({"set": {"op": "add", "elem": source, "set": "@seen", "stmt": [{"counter": null}]}}),
        json!({"mangle": {"key": meta("mark"), "value": {"|": [meta("mark"), 16]}}}),
    ] {
        for verdict in ["drop", "accept", "return", "reject"] {
            assert!(hides(&json!([statement, {verdict: null}])), "{statement} {verdict}");
        }
    }
    assert!(hides(&json!([{"queue": {"num": 1}}])));
    assert!(!hides(&json!([{"continue": null}])));
    let by_map =
        |key: &Value| json!([{"vmap": {"key": key, "data": {"set": [["loopback0", {"accept": null}]]}}}]);
    assert!(hides(&by_map(&meta("iifname"))) && !hides(&by_map(&meta("iifgroup"))));
}

#[test]
fn a_dormant_table_is_not_in_the_way() {
    let with = |flags: Value| {
        let text = json!({"nftables": [
            {"table": {"family": "inet", "name": "t", "handle": 1, "flags": flags}},
            {"table": {"family": "inet", "name": "another", "handle": 2, "flags": ["dormant"]}},
            {"chain": {"family": "inet", "table": "t", "name": "c", "type": "filter", "hook": "prerouting",
                       "prio": -300, "policy": "accept"}},
            {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": [{"notrack": null}]}},
        ]});
        of_rules(&parse(&text.to_string()).unwrap(), "loopback0", [127, 119, 0, 1]).len()
    };
    assert_eq!(with(json!(["owner"])), 1);
    // As nft 1.1.3 has it, and 1.1.7.
    assert_eq!(with(json!("dormant")), 0);
    assert_eq!(with(json!(["dormant"])), 0);
    assert_eq!(with(json!(["owner", "dormant"])), 0);
}

#[test]
fn an_invalid_ruleset_is_an_error_and_odd_parts_are_skipped() {
    assert!(parse("").is_err() && parse("{}").is_err() && parse("[]").is_err());
    let odd = json!({"nftables": [
        3, {"chain": null}, {"rule": {}}, {"set": {"elem": 7}}, {"map": {"map": "mark", "elem": [[1], 2]}},
        {"rule": {"expr": [{"match": 1}, {"mangle": {}}, {"vmap": {"data": {"set": [[]]}}}, {}]}},
    ]});
    assert_eq!(parse(&odd.to_string()).unwrap().chains.len(), 1);
}
