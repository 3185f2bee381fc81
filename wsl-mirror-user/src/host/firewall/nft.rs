//! `nft -n -j list ruleset` (libnftables-json(5)).
//!
//! Only what matters here is understood; a condition that is not counts as one that may hold or not.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::{ABOUT_US, Base, Chain, Condition, Rule, Ruleset, Sense, Verdict};
use crate::host::marks::{MarkUse, claimed};

/// How deep an expression may be; nft's own are a handful.
const DEEPEST: usize = 32;

/// Reads it.
pub fn parse(text: &str) -> Result<Ruleset, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("nft's JSON: {error}"))?;
    let items = value["nftables"].as_array().ok_or("nft's JSON has no \"nftables\"")?;
    let mut ruleset = Ruleset::default();
    let mut elements = Elements::default();
    for item in items {
        for kind in ["set", "map"] {
            if let Some(set) = item.get(kind) {
                let all = set["elem"].as_array().map_or(&[] as &[Value], Vec::as_slice);
                elements.0.insert((table(set), text_of(set, "name")), all);
            }
        }
        if let Some(chain) = item.get("chain") {
            ruleset.chains.push(read_chain(chain));
        }
    }
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    for (index, chain) in ruleset.chains.iter().enumerate() {
        places.insert((chain.table.clone(), chain.name.clone()), index);
    }
    for rule in items.iter().filter_map(|item| item.get("rule")) {
        let table = table(rule);
        let rules = read_rule(rule, &table, &elements);
        let chain = places.get(&(table, text_of(rule, "chain"))).and_then(|at| ruleset.chains.get_mut(*at));
        if let Some(chain) = chain {
            chain.rules.extend(rules);
        }
    }
    // A map that gives marks may be used where we do not see it: in another map, or by a program that looks it up.
    for map in items.iter().filter_map(|item| item.get("map")) {
        if map["map"] == "mark" {
            let values =
                elements.of(&table(map), &text_of(map, "name")).iter().filter_map(|pair| pair.get(1));
            let bits = values.fold(0, |bits, value| bits | bits_of(value, 0));
            let by = format!("{}: map {}", table(map), text_of(map, "name"));
            if bits != 0 {
                ruleset.marks.push(MarkUse { bits, by });
            }
        }
    }
    Ok(ruleset)
}

/// The elements of named sets and maps.
#[derive(Default)]
struct Elements<'a>(HashMap<(String, String), &'a [Value]>);

impl<'a> Elements<'a> {
    fn of(&self, table: &str, name: &str) -> &'a [Value] {
        self.0.get(&(table.to_owned(), name.to_owned())).copied().unwrap_or_default()
    }

    /// What a right-hand side stands for: itself, or each element of a set.
    fn all<'v>(&self, table: &str, value: &'v Value) -> Vec<&'v Value>
    where
        'a: 'v,
    {
        let values: Vec<&Value> = match value.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.of(table, name).iter().collect(),
            None => match value.get("set").and_then(Value::as_array) {
                Some(set) => set.iter().collect(),
                None => vec![value],
            },
        };
        values.into_iter().map(without_details).collect()
    }
}

/// An element may come with a timeout, a comment or a counter.
fn without_details(value: &Value) -> &Value {
    value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value)
}

fn text_of(object: &Value, field: &str) -> String {
    object[field].as_str().unwrap_or_default().to_owned()
}

fn table(object: &Value) -> String {
    let name = object.get("table").unwrap_or(&object["name"]).as_str().unwrap_or_default();
    format!("nft {} {name}", object["family"].as_str().unwrap_or_default())
}

fn read_chain(chain: &Value) -> Chain {
    let base = chain["hook"].as_str().map(|hook| Base {
        hook: hook.to_owned(),
        priority: chain["prio"].as_i64().unwrap_or_default(),
        drops: chain["policy"] == "drop",
    });
    Chain {
        table: table(chain),
        name: text_of(chain, "name"),
        sees_ipv4: matches!(chain["family"].as_str(), Some("ip" | "inet")),
        base,
        rules: Vec::new(),
    }
}

/// One rule, or several for one that chooses its verdict by a map.
fn read_rule(rule: &Value, table: &str, elements: &Elements<'_>) -> Vec<Rule> {
    let mut read = Rule {
        text: format!("{table}: chain {} handle {}", text_of(rule, "chain"), rule["handle"]),
        is_about_us: rule["comment"].as_str().is_some_and(|comment| comment.starts_with(ABOUT_US)),
        ..Rule::default()
    };
    let mut by_map = Vec::new();
    for statement in rule["expr"].as_array().map_or(&[] as &[Value], Vec::as_slice) {
        if let Some(found) = statement.get("match") {
            read.mark_bits |= bits_of_match(found, table, elements);
            read.conditions.extend(conditions(found, table, elements));
        } else if let Some(change) = statement.get("mangle") {
            let key = &change["key"];
            if is_mark(key) {
                read.mark_bits |= bits_of_change(&change["value"], table, elements, 0);
            }
            if is_meta_mark(key) {
                read.restored_bits |= restored_bits(&change["value"], 0);
            }
        } else if let Some(map) = statement.get("vmap") {
            for pair in elements.all(table, &map["data"]) {
                let (Some(key), Some(verdict)) = (pair.get(0), pair.get(1)) else { continue };
                let key = without_details(key);
                if is_mark(&map["key"]) {
                    read.mark_bits |= bits_of(key, 0);
                }
                let found = serde_json::json!({"op": "==", "left": map["key"], "right": key});
                by_map.push((conditions(&found, table, elements), read_verdict(verdict)));
            }
        } else if statement.get("xt").is_some() {
            read.has_xt = true;
            read.conditions.push(Condition::Unknown);
        } else if let Some(verdict) = read_verdict(statement) {
            read.verdict = verdict;
        } else if statement.get("limit").is_some() {
            read.conditions.push(Condition::Unknown);
        }
    }
    if by_map.is_empty() {
        return vec![read];
    }
    by_map
        .into_iter()
        .map(|(conditions, verdict)| {
            let mut rule = read.clone();
            rule.conditions.extend(conditions);
            rule.verdict = verdict.unwrap_or_default();
            rule
        })
        .collect()
}

fn read_verdict(statement: &Value) -> Option<Verdict> {
    let (name, argument) = statement.as_object()?.iter().next()?;
    let target = || argument["target"].as_str().unwrap_or_default().to_owned();
    match name.as_str() {
        "accept" => Some(Verdict::Accept),
        "drop" | "reject" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "jump" => Some(Verdict::Jump(target())),
        "goto" => Some(Verdict::Goto(target())),
        _ => None,
    }
}

/// What a match wants of a packet. `tcp dport` also wants TCP, without saying so.
fn conditions(found: &Value, table: &str, elements: &Elements<'_>) -> Vec<Condition> {
    let sense = match found["op"].as_str() {
        Some("==" | "in") => Sense::Is,
        Some("!=") => Sense::IsNot,
        _ => return vec![Condition::Unknown],
    };
    let (left, right) = (&found["left"], elements.all(table, &found["right"]));
    let unknown = || vec![Condition::Unknown];
    if let Some(key) = left.get("meta").and_then(|meta| meta["key"].as_str()) {
        return match key {
            "iif" | "iifname" => all(&right, |value| value.as_str().map(str::to_owned))
                .map_or_else(unknown, |names| vec![Condition::Interface(names, sense)]),
            "l4proto" => all(&right, protocol)
                .map_or_else(unknown, |protocols| vec![Condition::Protocol(protocols, sense)]),
            _ => unknown(),
        };
    }
    let Some(payload) = left.get("payload") else { return unknown() };
    let of = |name: &str| payload["protocol"] == name;
    match payload["field"].as_str() {
        Some("daddr") if of("ip") => {
            all(&right, addresses).map_or_else(unknown, |ranges| vec![Condition::Destination(ranges, sense)])
        }
        Some("saddr") if of("ip") => {
            all(&right, addresses).map_or_else(unknown, |ranges| vec![Condition::Source(ranges, sense)])
        }
        Some("protocol") if of("ip") => all(&right, protocol)
            .map_or_else(unknown, |protocols| vec![Condition::Protocol(protocols, sense)]),
        Some("dport") => {
            let Some(ports) = all(&right, ports) else { return unknown() };
            let mut wanted = vec![Condition::DestinationPort(ports, sense)];
            match payload["protocol"].as_str() {
                Some("th") => {}
                Some(name) => match protocol(&Value::from(name)) {
                    Some(number) => wanted.push(Condition::Protocol(vec![number], Sense::Is)),
                    None => return unknown(),
                },
                None => return unknown(),
            }
            wanted
        }
        _ => unknown(),
    }
}

/// Every value, if each is understood.
fn all<T>(values: &[&Value], read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    values.iter().map(|value| read(value)).collect()
}

fn protocol(value: &Value) -> Option<u8> {
    match value.as_str() {
        Some("tcp") => Some(6),
        Some("udp") => Some(17),
        Some("icmp") => Some(1),
        Some("sctp") => Some(132),
        Some("dccp") => Some(33),
        Some("udplite") => Some(136),
        Some(number) => number.parse().ok(),
        None => u8::try_from(value.as_u64()?).ok(),
    }
}

fn ports(value: &Value) -> Option<RangeInclusive<u16>> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match value.get("range") {
        Some(range) => Some(port(range.get(0)?)?..=port(range.get(1)?)?),
        None => port(value).map(|port| port..=port),
    }
}

fn addresses(value: &Value) -> Option<RangeInclusive<u32>> {
    let address = |value: &Value| value.as_str()?.parse::<Ipv4Addr>().ok().map(u32::from);
    if let Some(range) = value.get("range") {
        return Some(address(range.get(0)?)?..=address(range.get(1)?)?);
    }
    if let Some(prefix) = value.get("prefix") {
        let length = u32::try_from(prefix["len"].as_u64()?).ok()?;
        let host_bits = u32::MAX.checked_shr(length).unwrap_or(0);
        let first = address(&prefix["addr"])? & !host_bits;
        return (length <= u32::BITS).then_some(first..=first | host_bits);
    }
    address(value).map(|address| address..=address)
}

fn is_meta_mark(value: &Value) -> bool {
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

/// The two sides of a binary expression, the mark's side first.
fn operands<'v>(value: &'v Value, operator: &str) -> Option<(&'v Value, &'v Value)> {
    let operands = value.get(operator)?;
    Some((operands.get(0)?, operands.get(1)?))
}

/// A number as a mark.
fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
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
        // All that are below the highest one that changes on the way.
        let changing = (first ^ last).checked_ilog2().map_or(0, |bit| u32::MAX >> (u32::BITS - 1 - bit));
        return first | last | changing;
    }
    match value {
        Value::Array(values) => values.iter().fold(0, |bits, value| bits | bits_of(value, depth + 1)),
        Value::Object(fields) => fields.values().fold(0, |bits, value| bits | bits_of(value, depth + 1)),
        value => number(value).unwrap_or(0),
    }
}

fn bits_of_match(found: &Value, table: &str, elements: &Elements<'_>) -> u32 {
    let left = &found["left"];
    if !mentions(left, is_mark, 0) {
        return 0;
    }
    let mask = operands(left, "&").and_then(|(_, mask)| number(mask)).map_or(0, claimed);
    let values = elements.all(table, &found["right"]);
    values.into_iter().fold(mask, |bits, value| bits | bits_of(value, 0))
}

/// The bits of the mark that a change may set or clear.
fn bits_of_change(value: &Value, table: &str, elements: &Elements<'_>, depth: usize) -> u32 {
    if depth >= DEEPEST {
        return 0;
    }
    let inner = |value: &Value| bits_of_change(value, table, elements, depth + 1);
    if let Some((left, right)) = operands(value, "&") {
        return match number(right) {
            // What is kept of the packet's mark: the rest is cleared. Of conntrack's: that is what is set.
            Some(mask) if mentions(left, is_meta_mark, 0) => claimed(!mask) | inner(left),
            Some(mask) => claimed(mask) | inner(left),
            None => inner(left) | inner(right),
        };
    }
    for operator in ["|", "^"] {
        if let Some((left, right)) = operands(value, operator) {
            return inner(left) | inner(right);
        }
    }
    if let Some(map) = value.get("map") {
        let pairs = elements.all(table, &map["data"]);
        return pairs
            .into_iter()
            .filter_map(|pair| pair.get(1))
            .fold(0, |bits, value| bits | bits_of(value, 0));
    }
    if value.is_object() { 0 } else { bits_of(value, 0) }
}

/// The bits that a change of the packet's mark takes from conntrack's.
fn restored_bits(value: &Value, depth: usize) -> u32 {
    if depth >= DEEPEST {
        return u32::MAX;
    }
    if is_ct_mark(value) {
        return u32::MAX;
    }
    if let Some((left, right)) = operands(value, "&") {
        let mask = number(right).unwrap_or(u32::MAX);
        return restored_bits(left, depth + 1) & mask;
    }
    match value {
        Value::Array(values) => values.iter().fold(0, |bits, value| bits | restored_bits(value, depth + 1)),
        Value::Object(fields) => {
            fields.values().fold(0, |bits, value| bits | restored_bits(value, depth + 1))
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_range_of_marks_means_every_bit_that_changes_in_it() {
        assert_eq!(bits_of(&json!({"range": [0x100, 0x10f]}), 0), 0x10f);
        assert_eq!(bits_of(&json!({"range": [7, 8]}), 0), 0xf);
        assert_eq!(bits_of(&json!({"range": [0, u32::MAX]}), 0), u32::MAX);
        assert_eq!(bits_of(&json!([1, {"set": [2, 4]}]), 0), 7);
    }

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

    #[test]
    fn a_partial_restore_is_told_from_a_full_one() {
        let ct = json!({"ct": {"key": "mark"}});
        let meta = json!({"meta": {"key": "mark"}});
        assert_eq!(restored_bits(&ct, 0), u32::MAX);
        assert_eq!(restored_bits(&json!({"&": [ct, 0xff]}), 0), 0xff);
        let mixed = json!({"|": [{"&": [meta, 0xffff_ff00_u32]}, {"&": [ct, 0xff]}]});
        assert_eq!(restored_bits(&mixed, 0), 0xff);
        assert_eq!(bits_of_change(&mixed, "", &Elements::default(), 0), 0xff);
        assert_eq!(restored_bits(&meta, 0), 0);
        assert_eq!(bits_of_change(&json!({"numgen": {"mod": 4}}), "", &Elements::default(), 0), 0);
    }

    #[test]
    fn what_is_no_ruleset_is_an_error_and_odd_parts_of_one_are_passed_over() {
        assert!(parse("").is_err() && parse("{}").is_err() && parse("[]").is_err());
        let odd = json!({"nftables": [
            3, {"chain": null}, {"rule": {}}, {"set": {"elem": 7}}, {"map": {"map": "mark", "elem": [[1], 2]}},
            {"rule": {"expr": [{"match": 1}, {"mangle": {}}, {"vmap": {"data": {"set": [[]]}}}, {}]}},
        ]});
        assert_eq!(parse(&odd.to_string()).unwrap().chains.len(), 1);
    }
}
