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

/// A table of these sets and maps, a chain `c` and its rules, read from nft's own words.
pub(super) fn ruleset(objects: &[Value], chain: Value, rules: &[Value]) -> Ruleset {
    let in_table = |mut object: Value| {
        object["family"] = "inet".into();
        object["table"] = "t".into();
        object
    };
    let mut items = vec![json!({"chain": in_table(chain)})];
    for object in objects {
        let (kind, object) = object.as_object().unwrap().iter().next().unwrap();
        items.push(json!({kind: in_table(object.clone())}));
    }
    items.extend(rules.iter().map(|rule| json!({"rule": in_table(json!({"chain": "c", "expr": rule}))})));
    parse(&json!({"nftables": items}).to_string()).unwrap()
}

/// How many ranges of UDP ports are dropped unless they come in on `lo`, by a chain in front of conntrack.
fn dropped(objects: &[Value], rules: &[Value], policy: &str) -> usize {
    let chain = json!({"name": "c", "hook": "prerouting", "prio": -300, "policy": policy});
    let drops = super::super::walk::drops(&ruleset(objects, chain, rules), "loopback0");
    drops.iter().filter(|drop| drop.protocol == wsl_mirror_core::abi::Protocol::Udp).count()
}

fn not_on_lo() -> Value {
    json!({"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "lo"}})
}

#[test]
fn a_drop_behind_a_conditional_end_is_not_certain() {
    let limit = json!({"limit": {"rate": 400, "burst": 5, "per": "second", "inv": true}});
    let source = json!({"payload": {"protocol": "ip", "field": "saddr"}});
    for statement in [
        limit.clone(),
        json!({"limit": "named"}),
        json!({"quota": {"val": 100, "val_unit": "mbytes", "inv": true}}),
        json!({"quota": "named"}),
        json!({"ct count": {"val": 20, "inv": true}}),
        json!({"set": {"op": "update", "elem": source, "set": "@flood", "stmt": [limit]}}),
        json!({"set": {"op": "add", "elem": source, "set": "@flood", "stmt": [{"ct count": {"val": 20}}]}}),
        json!({"map": {"op": "update", "elem": source, "data": 1, "map": "@m", "stmt": [limit]}}),
        json!({"meter": {"key": source, "stmt": limit, "size": 1024, "name": "m"}}),
        json!({"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"map": {"key": source, "data": "@m"}}}}),
        json!({"mangle": {"key": {"payload": {"protocol": "ip", "field": "dscp"}}, "value": 1}}),
        json!({"something": "new"}),
    ] {
        assert_eq!(
            dropped(&[], &[json!([not_on_lo(), statement, {"drop": null}])], "accept"),
            0,
            "{statement}"
        );
    }
    for statement in [
        json!({"counter": {"packets": 0, "bytes": 0}}),
        json!({"counter": null}),
        json!({"log": {"prefix": "x"}}),
        json!({"notrack": null}),
        json!({"set": {"op": "add", "elem": {"elem": {"val": source, "timeout": 10}}, "set": "@seen"}}),
        json!({"set": {"op": "add", "elem": source, "set": "@seen", "stmt": [{"counter": null}]}}),
        json!({"mangle": {"key": {"meta": {"key": "nftrace"}}, "value": 1}}),
        json!({"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"|": [{"meta": {"key": "mark"}}, 16]}}}),
    ] {
        assert_eq!(
            dropped(&[], &[json!([not_on_lo(), statement, {"drop": null}])], "accept"),
            1,
            "{statement}"
        );
    }
}

#[test]
fn elements_that_have_a_limit_of_their_own_make_no_drop_certain() {
    let port = json!({"payload": {"protocol": "udp", "field": "dport"}});
    let drop_in = |elem: Value| {
        let set = [json!({"set": {"name": "s", "type": "inet_service", "elem": [elem]}})];
        let found = json!({"match": {"op": "==", "left": port, "right": "@s"}});
        dropped(&set, &[json!([not_on_lo(), found, {"drop": null}])], "accept")
    };
    let limit = json!({"rate": 5, "burst": 5, "per": "second"});
    let quota = json!({"val": 500, "val_unit": "bytes", "inv": true});
    assert_eq!(drop_in(json!(80)), 1);
    assert_eq!(
        drop_in(json!({"elem": {"val": 80, "timeout": 9, "expires": 8, "comment": "x", "counter": {}}})),
        1
    );
    assert_eq!(drop_in(json!({"elem": {"val": 80, "limit": limit}})), 0);
    assert_eq!(drop_in(json!({"elem": {"val": 80, "quota": quota}})), 0);
    let by_map = |element: Value| {
        let vmap = json!({"vmap": {"key": port, "data": {"set": [[element, {"drop": null}]]}}});
        dropped(&[], &[json!([not_on_lo(), vmap])], "accept")
    };
    assert_eq!(by_map(json!({"elem": {"val": 80, "comment": "x"}})), 1);
    assert_eq!(by_map(json!({"elem": {"val": 80, "limit": limit}})), 0);
}

#[test]
fn a_possible_accept_hides_a_policy_of_drop() {
    let is = |left: Value, right: Value| json!({"match": {"op": "==", "left": left, "right": right}});
    let on_lo = json!([is(json!({"meta": {"key": "iifname"}}), json!("lo")), {"accept": null}]);
    let with = |first: Value| dropped(&[], &[on_lo.clone(), first], "drop");
    assert_eq!(with(json!([])), 1);
    let kind = json!({"fib": {"result": "type", "flags": ["daddr"]}});
    assert_eq!(with(json!([is(kind.clone(), json!(2)), {"accept": null}])), 0);
    assert_eq!(with(json!([{"vmap": {"key": kind, "data": {"set": [[2, {"accept": null}]]}}}])), 0);
    assert_eq!(with(json!([{"queue": {"num": 1}}])), 0);
    // What is for other packets is not in the way.
    let of = |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
    for (left, right) in [
        (json!({"meta": {"key": "nfproto"}}), json!(10)),
        (json!({"meta": {"key": "protocol"}}), json!(56710)),
        (of("ip6", "daddr"), json!("::1")),
        (of("icmpv6", "type"), json!({"set": [133, 134]})),
        (of("icmp", "type"), json!(8)),
        (of("tcp", "sport"), json!(53)),
        (json!({"&": [of("tcp", "flags"), {"|": [2, 16]}]}), json!(2)),
        (json!({"concat": [of("ip", "saddr"), of("tcp", "dport")]}), json!({"concat": ["1.2.3.4", 80]})),
    ] {
        let found = is(left, right);
        assert_eq!(with(json!([found, {"accept": null}])), 1, "{found}");
    }
    for (left, right) in [
        (json!({"meta": {"key": "nfproto"}}), json!(2)),
        (json!({"meta": {"key": "protocol"}}), json!({"set": [8, 56710]})),
        (of("udp", "sport"), json!(53)),
        (json!({"payload": {"tunnel": "vxlan", "protocol": "ip", "field": "daddr"}}), json!("1.2.3.4")),
        (json!({"payload": {"tunnel": "vxlan", "protocol": "tcp", "field": "dport"}}), json!(80)),
    ] {
        let found = is(left, right);
        assert_eq!(with(json!([found, {"accept": null}])), 0, "{found}");
    }
}

#[test]
fn a_dormant_table_drops_nothing_but_its_marks_are_in_use() {
    let with = |flags: Value| {
        let of_table = |kind: &str, mut object: Value| {
            object["family"] = "inet".into();
            object["table"] = "t".into();
            json!({kind: object})
        };
        let mark = json!({"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 0x1000}});
        let text = json!({"nftables": [
            {"table": {"family": "inet", "name": "t", "handle": 1, "flags": flags}},
            {"table": {"family": "inet", "name": "another", "handle": 2, "flags": ["dormant"]}},
            of_table("chain", json!({"name": "c", "hook": "prerouting", "prio": -300, "policy": "accept"})),
            of_table("rule", json!({"chain": "c", "expr": [not_on_lo(), {"drop": null}]})),
            of_table("rule", json!({"chain": "c", "expr": [mark, {"return": null}]})),
        ]});
        let ruleset = parse(&text.to_string()).unwrap();
        let bits = ruleset.chains[0].rules.iter().fold(0, |bits, rule| bits | rule.mark_bits);
        (super::super::walk::drops(&ruleset, "loopback0").len(), bits)
    };
    assert_eq!(with(json!(["owner"])), (2, 0x1000));
    // As nft 1.1.3 has it, and 1.1.7.
    assert_eq!(with(json!("dormant")), (0, 0x1000));
    assert_eq!(with(json!(["dormant"])), (0, 0x1000));
    assert_eq!(with(json!(["owner", "dormant"])), (0, 0x1000));
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
