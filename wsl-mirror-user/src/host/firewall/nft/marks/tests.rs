use super::super::tests::ruleset;
use super::*;
use serde_json::json;

/// The bits of the mark that a statement uses, beside these sets and maps.
fn bits_with(objects: &[Value], statement: &Value) -> u32 {
    let ruleset = ruleset(objects, json!({"name": "c"}), &[json!([statement])]);
    ruleset.chains[0].rules.iter().fold(0, |bits, rule| bits | rule.mark_bits)
}

fn bits(statement: &Value) -> u32 {
    bits_with(&[], statement)
}

/// A choice of a verdict by this key: one that drops what has this one.
fn verdict_map(key: &Value, element: &Value) -> Value {
    json!({"vmap": {"key": key, "data": {"set": [[element, {"drop": null}], ["*", {"accept": null}]]}}})
}

fn meta_mark() -> Value {
    json!({"meta": {"key": "mark"}})
}

fn ct_mark() -> Value {
    json!({"ct": {"key": "mark"}})
}

fn dport() -> Value {
    json!({"payload": {"protocol": "tcp", "field": "dport"}})
}

/// `meta mark set …`
fn set_meta(value: &Value) -> Value {
    json!({"mangle": {"key": meta_mark(), "value": value}})
}

/// `ct mark set …`
fn set_ct(value: &Value) -> Value {
    json!({"mangle": {"key": ct_mark(), "value": value}})
}

#[test]
fn bits_in_the_keys_of_verdict_maps_are_in_use() {
    let masked = json!({"&": [meta_mark(), 0xf000]});
    assert_eq!(bits(&verdict_map(&meta_mark(), &json!(0x1000))), 0x1000);
    assert_eq!(bits(&verdict_map(&masked, &json!(0x1000))), 0xf000);
    // nft 1.0.6 prints this range so.
    let prefix = json!({"prefix": {"addr": 0x1000, "len": 20}});
    assert_eq!(bits(&verdict_map(&meta_mark(), &prefix)), 0x1fff);

    let joined = |mark| json!({"concat": [mark, dport()]});
    let both = |mark| json!({"concat": [mark, 0x50]});
    let element = both(json!(0x1000));
    assert_eq!(bits(&verdict_map(&joined(meta_mark()), &element)), 0x1000, "and none of the port's");
    assert_eq!(bits(&verdict_map(&joined(masked), &element)), 0xf000);
    let span = json!({"elem": {"val": both(json!({"range": [0x2000, 0x2fff]})), "comment": "x"}});
    assert_eq!(bits(&verdict_map(&joined(ct_mark()), &span)), 0x2fff);

    let elem = json!([[0x1000, {"drop": null}]]);
    let named = json!({"map": {"name": "m", "type": "mark", "map": "verdict", "elem": elem}});
    assert_eq!(bits_with(&[named], &json!({"vmap": {"key": meta_mark(), "data": "@m"}})), 0x1000);
}

#[test]
fn bits_in_a_concatenation_that_is_matched_are_in_use() {
    let key = json!({"concat": [dport(), meta_mark()]});
    let elem = json!([{"concat": [7, 0x1000]}]);
    let set = [json!({"set": {"name": "s", "type": ["inet_service", "mark"], "elem": elem}})];
    for right in [json!({"set": elem}), json!("@s")] {
        assert_eq!(bits_with(&set, &json!({"match": {"op": "==", "left": key, "right": right}})), 0x1000);
    }
}

#[test]
fn every_operand_of_an_expression_counts_nested_or_in_a_row() {
    for value in [
        json!({"|": [meta_mark(), 0x10, 0x1000]}),
        json!({"|": [{"|": [meta_mark(), 0x10]}, 0x1000]}),
        json!({"^": [meta_mark(), 0x10, 0x1000]}),
    ] {
        assert_eq!(bits(&set_meta(&value)), 0x1010, "{value}");
    }
    for value in [
        json!({"&": [meta_mark(), 0xffff_f0ff_u32, 0xffff_ff0f_u32]}),
        json!({"&": [{"&": [meta_mark(), 0xffff_f0ff_u32]}, 0xffff_ff0f_u32]}),
    ] {
        assert_eq!(bits(&set_meta(&value)), 0xff0, "{value}");
    }
    let masked = json!({"&": [meta_mark(), 0xff000, 0xf0f0]});
    assert_eq!(bits(&json!({"match": {"op": "!=", "left": masked, "right": 0}})), 0xf000);
    // As nft 1.1.7 has `meta mark & 0xf000 | 0x10 == 0x1010`.
    let left = json!({"|": [{"&": [meta_mark(), 0xf010]}, 0x10]});
    assert_eq!(bits(&json!({"match": {"op": "==", "left": left, "right": 0x1010}})), 0xf010);
    let restore = set_meta(&json!({"&": [ct_mark(), 0xff0, 0xff]}));
    assert_eq!(restored_bits(&restore, "", &Elements::default()), 0xf0);
}

#[test]
fn a_mask_says_which_bits_are_cleared_and_which_are_taken() {
    let and = |mark, mask: u32| json!({"&": [mark, mask]});
    for (statement, expected) in [
        (set_meta(&and(meta_mark(), 0xffff_0fff)), 0xf000),
        (set_ct(&and(ct_mark(), 0xffff_0fff)), 0xf000),
        (set_ct(&and(meta_mark(), 0xff00)), 0xff00),
        (set_ct(&and(meta_mark(), 0xffff)), 0xffff),
        (set_meta(&and(ct_mark(), 0xff00)), 0xff00),
        (set_meta(&and(meta_mark(), 0xff00)), 0),
        (set_meta(&json!({"|": [and(meta_mark(), 0xffff_00ff), 0x1200]})), 0xff00),
        (set_ct(&json!({"|": [and(meta_mark(), 0xff01), 0x1]})), 0xff01),
        (set_ct(&meta_mark()), 0),
        (set_meta(&json!({"&": [meta_mark(), ct_mark()]})), 0),
        (set_meta(&json!({"<<": [{"payload": {"protocol": "ip", "field": "dscp"}}, 8]})), 0x3f00),
        (set_meta(&json!({"<<": [and(meta_mark(), 0xff), 4]})), 0xff0),
    ] {
        assert_eq!(bits(&statement), expected, "{statement}");
    }
}

#[test]
fn a_hashed_mark_may_be_any_number_of_its_range() {
    for (value, expected) in [
        (json!({"numgen": {"mode": "inc", "mod": 4, "offset": 0}}), 0x3),
        (json!({"numgen": {"mode": "random", "mod": 4}}), 0x3),
        (json!({"numgen": {"mode": "random", "mod": 4, "offset": 0x1000}}), 0x1003),
        (json!({"jhash": {"mod": 16, "offset": 0x1000, "expr": dport()}}), 0x100f),
        (json!({"symhash": {"mod": 8, "offset": 0x100}}), 0x107),
        (json!({"symhash": {"mod": 1, "offset": 0x100}}), 0x100),
        (json!({"symhash": {"mod": u32::MAX, "offset": u32::MAX}}), u32::MAX),
        (json!({"|": [{"&": [meta_mark(), 0xffff_ff00_u32]}, {"numgen": {"mod": 4}}]}), 0xff),
        (json!({"map": {"key": {"numgen": {"mod": 2}}, "data": {"set": [[0, 0x10], [1, 0x20]]}}}), 0x30),
    ] {
        assert_eq!(bits(&set_meta(&value)), expected, "{value}");
    }
}

#[test]
fn keys_of_maps_are_in_use_whatever_the_map_is_for() {
    let elem = json!([[0x1000, "10.0.0.1"], [0x2000, "10.0.0.2"]]);
    let map = |key| json!({"map": {"key": key, "data": {"set": elem}}});
    assert_eq!(bits(&json!({"dnat": {"addr": map(meta_mark())}})), 0x3000);
    assert_eq!(bits(&json!({"dnat": {"addr": map(json!({"&": [meta_mark(), 0xff000]}))}})), 0xff000);
    assert_eq!(bits(&json!({"dnat": {"addr": map(dport())}})), 0);
    let named = json!({"map": {"name": "m", "type": "mark", "map": "ipv4_addr", "elem": elem}});
    let by_name = json!({"dnat": {"addr": {"map": {"key": meta_mark(), "data": "@m"}}}});
    assert_eq!(bits_with(&[named], &by_name), 0x3000);
    let joined = json!({"concat": [meta_mark(), dport()]});
    let data = json!({"set": [[{"concat": [0x1000, 80]}, {"concat": ["10.0.0.1", 8080]}]]});
    assert_eq!(bits(&json!({"dnat": {"addr": {"map": {"key": joined, "data": data}}}})), 0x1000);
    let paint = json!({"map": {"key": meta_mark(), "data": {"set": [[0x1000, 1]]}}});
    assert_eq!(bits(&set_meta(&paint)), 0x1001);
    let masked = json!({"jhash": {"mod": 2, "expr": {"&": [meta_mark(), 0xf000]}}});
    assert_eq!(bits(&set_meta(&masked)), 0xf001);
}

#[test]
fn marks_from_a_map_are_told_from_its_other_values() {
    let both = json!({"concat": [0x1000, 80]});
    for (kinds, value, expected) in [
        (json!("mark"), json!(0x20), 0x20),
        (json!("inet_service"), json!(0x20), 0),
        (json!("mark . inet_service"), both.clone(), 0x1000),
        (json!(["mark", "inet_service"]), both, 0x1000),
    ] {
        let elem = json!([["10.0.0.1", value]]);
        let map = json!({"map": {"name": "m", "type": "ipv4_addr", "map": kinds, "elem": elem}});
        let ruleset = ruleset(&[map], json!({"name": "c"}), &[]);
        assert_eq!(ruleset.marks.iter().fold(0, |bits, used| bits | used.bits), expected, "{kinds}");
    }
}

#[test]
fn a_partial_restore_is_told_from_a_full_one() {
    let restored = |value: &Value| restored_bits(&set_meta(value), "", &Elements::default());
    assert_eq!(restored(&ct_mark()), u32::MAX);
    assert_eq!(restored(&json!({"&": [ct_mark(), 0xff]})), 0xff);
    assert_eq!(restored(&json!({"|": [{"<<": [{"&": [ct_mark(), 0xff]}, 8]}, 0x1]})), 0xff00);
    let mixed = json!({"|": [{"&": [meta_mark(), 0xffff_ff00_u32]}, {"&": [ct_mark(), 0xff]}]});
    assert_eq!(restored(&mixed), 0xff);
    assert_eq!(bits(&set_meta(&mixed)), 0xff);
    assert_eq!(restored(&meta_mark()), 0);
    assert_eq!(restored_bits(&set_ct(&ct_mark()), "", &Elements::default()), 0);
}

#[test]
fn a_range_of_marks_means_every_bit_that_changes_in_it() {
    assert_eq!(bits_of(&json!({"range": [0x100, 0x10f]}), 0), 0x10f);
    assert_eq!(bits_of(&json!({"range": [7, 8]}), 0), 0xf);
    assert_eq!(bits_of(&json!({"range": [0, u32::MAX]}), 0), u32::MAX);
    assert_eq!(bits_of(&json!([1, {"set": [2, 4]}]), 0), 7);
}
