//! The bits of `skb->mark` and of conntrack's mark that rules name.
//!
//! A literal number is enough: a rule that copies a mark as a whole names no bit, and brings no bit into a flow that has none.
//! The recursion ends: `serde_json` reads no value that is deeper than 128.

use serde_json::Value;

/// A number with more bits than this clears the others: `meta mark & 0xffffbfff`.
const BITS_MAX: u32 = 16;

/// The bits in nft's statements about marks.
pub fn of_nft(rule: &Value) -> u32 {
    let statements = rule["expr"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    statements.iter().filter(|one| names_mark(one)).map(numbers).fold(0, |all, bits| all | bits)
}

/// The bits in a value of an option of iptables': `0x4000/0xffffffff`.
pub fn of_iptables(option: &str, value: &str) -> u32 {
    if !option.ends_with("mark") && !option.ends_with("mask") {
        return 0;
    }
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    value.split('/').filter_map(number).map(bits).fold(0, |all, bits| all | bits)
}

const fn bits(number: u32) -> u32 {
    if number.count_ones() > BITS_MAX { !number } else { number }
}

fn names_mark(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().any(names_mark),
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            (matches!(name.as_str(), "meta" | "ct") && value["key"] == "mark") || names_mark(value)
        }),
        _ => false,
    }
}

fn numbers(value: &Value) -> u32 {
    match value {
        Value::Array(values) => values.iter().map(numbers).fold(0, |all, bits| all | bits),
        Value::Object(fields) => fields.values().map(numbers).fold(0, |all, bits| all | bits),
        Value::Number(number) => {
            number.as_u64().and_then(|number| u32::try_from(number).ok()).map_or(0, bits)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(statement: &Value) -> u32 {
        of_nft(&json!({"expr": [{"counter": {"packets": 64, "bytes": 64}}, statement]}))
    }

    #[test]
    fn nft_rules_name_bits_by_matches_and_changes_of_marks() {
        let mark = || json!({"meta": {"key": "mark"}});
        let matched =
            |left: Value, right: Value| json!({"match": {"op": "==", "left": left, "right": right}});
        assert_eq!(of(&matched(mark(), json!(64))), 64);
        assert_eq!(of(&matched(json!({"&": [mark(), 16384]}), json!(0))), 16384);
        assert_eq!(of(&matched(json!({"ct": {"key": "mark"}}), json!({"set": [1, 2]}))), 3);
        assert_eq!(of(&json!({"mangle": {"key": mark(), "value": {"|": [mark(), 64]}}})), 64);
        assert_eq!(
            of(&json!({"mangle": {"key": mark(), "value": {"&": [mark(), 0xffff_bfff_u32]}}})),
            0x4000
        );
        assert_eq!(of(&matched(json!({"meta": {"key": "skuid"}}), json!(64))), 0);
        assert_eq!(of(&json!({"accept": null})), 0);
    }

    #[test]
    fn iptables_rules_name_bits_by_options_of_marks() {
        assert_eq!(of_iptables("--mark", "0x40/0x40"), 0x40);
        assert_eq!(of_iptables("--set-xmark", "0x4000/0xffffffff"), 0x4000);
        assert_eq!(of_iptables("--ctmask", "0xffffffbf"), 0x40);
        assert_eq!(of_iptables("--mark", "64"), 64);
        assert_eq!(of_iptables("--dport", "64"), 0);
        assert_eq!(of_iptables("--mark", "0xfffffffff/x"), 0);
    }
}
