//! Which bits of the mark a statement looks at, sets, clears, or takes from conntrack's.

use serde_json::Value;

use super::elements::{DEEPEST, Elements};
use crate::host::marks::claimed;

pub(super) fn is_meta_mark(value: &Value) -> bool {
    value.get("meta").is_some_and(|meta| meta["key"] == "mark")
}

fn is_mark(value: &Value) -> bool {
    is_meta_mark(value) || is_ct_mark(value)
}

fn is_ct_mark(value: &Value) -> bool {
    value.get("ct").is_some_and(|ct| ct["key"] == "mark")
}

fn mentions(value: &Value, is_it: fn(&Value) -> bool, depth: usize) -> bool {
    let inside = |value: &Value| mentions(value, is_it, depth + 1);
    is_it(value)
        || depth < DEEPEST
            && match value {
                Value::Array(values) => values.iter().any(inside),
                Value::Object(fields) => fields.values().any(inside),
                _ => false,
            }
}

/// A number as a mark.
fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// Every bit that changes, or is set, on the way from one number to another.
fn bits_between(first: u32, last: u32) -> u32 {
    // All that are below the highest one that changes.
    let changing = (first ^ last).checked_ilog2().map_or(0, |bit| u32::MAX >> (u32::BITS - 1 - bit));
    first | last | changing
}

/// The bits of every number in a value.
fn bits_of(value: &Value, depth: usize) -> u32 {
    if depth >= DEEPEST {
        return 0;
    }
    if let Some(range) = value.get("range") {
        let (Some(first), Some(last)) = (range.get(0).and_then(number), range.get(1).and_then(number)) else {
            return 0;
        };
        return bits_between(first, last);
    }
    if let Some(prefix) = value.get("prefix") {
        // How nft 1.0.6 says some ranges.
        let length =
            prefix["len"].as_u64().and_then(|length| u32::try_from(length).ok()).unwrap_or(u32::BITS);
        return number(&prefix["addr"])
            .map_or(0, |first| bits_between(first, first | u32::MAX.checked_shr(length).unwrap_or(0)));
    }
    match value {
        Value::Array(values) => values.iter().fold(0, |bits, value| bits | bits_of(value, depth + 1)),
        Value::Object(fields) => fields.values().fold(0, |bits, value| bits | bits_of(value, depth + 1)),
        value => number(value).unwrap_or(0),
    }
}

/// The bits that an element of a map gives, which is of these kinds: `mark`, `mark . inet_service` (nft 1.0.6), or a
/// list of them (1.1.3).
pub(super) fn bits_given(kinds: &Value, value: &Value) -> u32 {
    let kinds: Vec<&str> = match kinds {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kinds => kinds.as_str().map_or_else(Vec::new, |kinds| kinds.split(" . ").collect()),
    };
    let parts = value.get("concat");
    kinds.iter().enumerate().filter(|(_, kind)| **kind == "mark").fold(0, |bits, (index, _)| {
        bits | parts.map_or(Some(value), |parts| parts.get(index)).map_or(0, |value| bits_of(value, 0))
    })
}

/// The bits of conntrack's mark that a statement copies to the packet's.
pub(super) fn restored_bits(statement: &Value, table: &str, elements: &Elements<'_>) -> u32 {
    match statement.get("mangle") {
        Some(change) if is_meta_mark(&change["key"]) => {
            Change::of(&change["value"], is_meta_mark, table, elements).restored
        }
        _ => 0,
    }
}

/// The bits of the mark that a statement looks at or changes.
pub(super) fn bits_of_statement(statement: &Value, table: &str, elements: &Elements<'_>) -> u32 {
    let Some(change) = statement.get("mangle") else {
        return bits_looked_at(statement, table, elements, 0);
    };
    let value = &change["value"];
    // What a mask leaves of the mark that is changed is kept; of the other one, it is what is set.
    let is_changed = match &change["key"] {
        key if is_meta_mark(key) => is_meta_mark,
        key if is_ct_mark(key) => is_ct_mark,
        _ => return bits_looked_at(statement, table, elements, 0),
    };
    Change::of(value, is_changed, table, elements).bits() | bits_asked_for(value, table, elements, 0)
}

/// The bits that a new mark depends on: those that maps and hashes in it look at. Masks outside of these say what is
/// changed, which is another question.
fn bits_asked_for(value: &Value, table: &str, elements: &Elements<'_>, depth: usize) -> u32 {
    match operation(value) {
        Some((_, operands)) if depth < DEEPEST => operands
            .iter()
            .fold(0, |bits, operand| bits | bits_asked_for(operand, table, elements, depth + 1)),
        Some(_) => 0,
        None => bits_looked_at(value, table, elements, 0),
    }
}

/// The bits that comparisons, keys of maps and masks, wherever they are, look at.
fn bits_looked_at(value: &Value, table: &str, elements: &Elements<'_>, depth: usize) -> u32 {
    if depth >= DEEPEST {
        return 0;
    }
    let mut bits = 0;
    if let Some(found) = value.get("match") {
        bits |= bits_compared(&found["left"], &elements.all(table, &found["right"]), table, elements);
    }
    for map in ["map", "vmap"].iter().filter_map(|name| value.get(name)) {
        bits |= bits_compared(&map["key"], &elements.keys(table, &map["data"]), table, elements);
    }
    if value.get("&").is_some() {
        bits |= claimed(Change::of(value, is_mark, table, elements).kept);
    }
    let inside = |value: &Value| bits_looked_at(value, table, elements, depth + 1);
    match value {
        Value::Array(values) => values.iter().fold(bits, |bits, value| bits | inside(value)),
        Value::Object(fields) => fields.values().fold(bits, |bits, value| bits | inside(value)),
        _ => bits,
    }
}

/// The bits of a mark that are compared to one of these; of what is joined (`.`), part by part.
fn bits_compared(key: &Value, values: &[&Value], table: &str, elements: &Elements<'_>) -> u32 {
    if let Some(parts) = key["concat"].as_array() {
        return parts.iter().enumerate().fold(0, |bits, (index, part)| {
            let values: Vec<&Value> =
                values.iter().filter_map(|value| value.get("concat")?.get(index)).collect();
            bits | bits_compared(part, &values, table, elements)
        });
    }
    let looked_at = Change::of(key, is_mark, table, elements).kept;
    if looked_at == 0 {
        return 0;
    }
    values.iter().fold(claimed(looked_at), |bits, value| bits | bits_of(value, 0))
}

/// What an expression makes of a mark, bit by bit. Bits that are none of these are cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    /// Those that a number names: they are set or turned round.
    named: u32,
    /// Those that stay as they are.
    kept: u32,
    /// Those that come from elsewhere: another mark, a field of the packet, …
    foreign: u32,
    /// Those of them all that depend on conntrack's mark, where that is not the one that is changed.
    restored: u32,
}

impl Change {
    /// What comes from elsewhere, and nothing else.
    const fn from_elsewhere(bits: u32) -> Self {
        Self { foreign: bits, named: 0, kept: 0, restored: 0 }
    }

    /// `is_it` knows the mark that is changed.
    fn of(value: &Value, is_it: fn(&Value) -> bool, table: &str, elements: &Elements<'_>) -> Self {
        Self::read(value, is_it, table, elements, 0)
    }

    fn read(
        value: &Value,
        is_it: fn(&Value) -> bool,
        table: &str,
        elements: &Elements<'_>,
        depth: usize,
    ) -> Self {
        if depth >= DEEPEST {
            return Self { restored: u32::MAX, ..Self::from_elsewhere(u32::MAX) };
        }
        if is_it(value) {
            return Self { kept: u32::MAX, ..Self::default() };
        }
        if let Some((operator, operands)) = operation(value) {
            // Two of them or more: newer versions do not nest what has the same operator.
            let mut operands =
                operands.iter().map(|operand| Self::read(operand, is_it, table, elements, depth + 1));
            let first = operands.next().unwrap_or_default();
            return operands.fold(first, |left, right| match operator {
                "&" => left.and(right),
                "<<" => left.shifted(|bits| bits.checked_shl(right.named).unwrap_or(0)),
                ">>" => left.shifted(|bits| bits.checked_shr(right.named).unwrap_or(0)),
                _ => left.or(right),
            });
        }
        let restored = if mentions(value, is_ct_mark, 0) { u32::MAX } else { 0 };
        let named = if let Some(map) = value.get("map") {
            let pairs = elements.all(table, &map["data"]);
            pairs.into_iter().filter_map(|pair| pair.get(1)).fold(0, |bits, value| bits | bits_of(value, 0))
        } else if let Some(number) = ["numgen", "jhash", "symhash"].iter().find_map(|name| value.get(name)) {
            numbers_of(number)
        } else if value.is_object() {
            return Self { restored, ..Self::from_elsewhere(width(value)) };
        } else {
            bits_of(value, 0)
        };
        Self { named, restored: restored & named, ..Self::default() }
    }

    /// Those that are not cleared.
    const fn possible(self) -> u32 {
        self.named | self.kept | self.foreign
    }

    const fn and(self, other: Self) -> Self {
        let named = self.named & other.named;
        let kept = self.kept & (other.kept | other.named) | other.kept & self.named;
        Self {
            named,
            kept,
            foreign: self.possible() & other.possible() & !named & !kept,
            restored: self.restored & other.possible() | other.restored & self.possible(),
        }
    }

    /// Also for `^`: what is turned round is named, too.
    const fn or(self, other: Self) -> Self {
        let named = self.named | other.named;
        let foreign = (self.foreign | other.foreign) & !named;
        Self {
            named,
            kept: (self.kept | other.kept) & !named & !foreign,
            foreign,
            restored: self.restored | other.restored,
        }
    }

    /// What has moved is not what it was.
    fn shifted(self, shift: impl Fn(u32) -> u32) -> Self {
        Self {
            named: shift(self.named),
            kept: 0,
            foreign: shift(self.kept | self.foreign),
            restored: shift(self.restored),
        }
    }

    /// The bits in use.
    const fn bits(self) -> u32 {
        // Where nothing is kept, the whole mark is new.
        let field = if self.kept == 0 { 0 } else { !self.kept };
        self.named | claimed(self.foreign) | claimed(field)
    }
}

/// The operator of an expression, and all of its operands.
fn operation(value: &Value) -> Option<(&str, &[Value])> {
    let (operator, operands) = value.as_object()?.iter().next()?;
    match operator.as_str() {
        "&" | "|" | "^" | "<<" | ">>" => Some((operator, operands.as_array()?)),
        _ => None,
    }
}

/// The bits of the numbers that a generator of numbers (`numgen`, `jhash`, `symhash`) comes to.
fn numbers_of(generator: &Value) -> u32 {
    let offset = number(&generator["offset"]).unwrap_or(0);
    let count = number(&generator["mod"]).unwrap_or(0);
    bits_between(offset, offset.saturating_add(count.saturating_sub(1)))
}

/// The bits of what comes from elsewhere, as far as they are known.
fn width(value: &Value) -> u32 {
    match value.get("payload").and_then(|payload| payload["field"].as_str()) {
        Some("dscp") => 0x3f,
        Some("sport" | "dport") => 0xffff,
        _ => u32::MAX,
    }
}

#[cfg(test)]
mod tests {
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
    fn bits_in_the_keys_of_verdict_maps_are_in_use_behind_a_mask_and_in_a_concatenation() {
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
    fn a_mask_says_what_is_cleared_of_the_mark_that_is_set_and_what_is_taken_of_another() {
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
    fn a_mark_that_is_counted_or_hashed_may_be_any_number_of_its_range() {
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
    fn marks_that_a_map_gives_are_told_from_what_else_it_gives() {
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
}
