//! `nft -n -j list ruleset` (libnftables-json(5)).
//!
//! Only what matters here is understood; a condition that is not counts as one that may hold or not.

mod elements;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::iptables;
use super::ruleset::{Base, Chain, Condition, Effect, Kind, Rule, Ruleset, Sense, Verdict};
use elements::{DEEPEST, Elements};

/// Reads it.
pub fn parse(text: &str) -> Result<Ruleset, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("nft's JSON: {error}"))?;
    let items = value["nftables"].as_array().ok_or("nft's JSON has no \"nftables\"")?;
    let mut ruleset = Ruleset::default();
    let mut elements = Elements::default();
    let dormant: HashSet<String> = items
        .iter()
        .filter_map(|item| item.get("table"))
        .filter(|table| is_dormant(table))
        .map(table)
        .collect();
    for item in items {
        for kind in ["set", "map"] {
            if let Some(set) = item.get(kind) {
                let all = set["elem"].as_array().map_or(&[] as &[Value], Vec::as_slice);
                elements.0.insert((table(set), text_of(set, "name")), all);
            }
        }
        if let Some(chain) = item.get("chain") {
            let mut chain = read_chain(chain);
            // No packet enters it until somebody wakes the table.
            chain.base = chain.base.filter(|_| !dormant.contains(&chain.table));
            ruleset.chains.push(chain);
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
    Ok(ruleset)
}

/// Whether an element comes with something that has to hold as well: a set may have a limit for each of them.
fn is_limited(value: &Value) -> bool {
    let details = value.get("elem").and_then(Value::as_object);
    details.is_some_and(|details| {
        let harmless = ["val", "timeout", "expires", "comment", "counter", "last"];
        details.keys().any(|name| !harmless.contains(&name.as_str()))
    })
}

fn text_of(object: &Value, field: &str) -> String {
    object[field].as_str().unwrap_or_default().to_owned()
}

fn table(object: &Value) -> String {
    let name = object.get("table").unwrap_or(&object["name"]).as_str().unwrap_or_default();
    format!("nft {} {name}", object["family"].as_str().unwrap_or_default())
}

/// Whether a table's chains are out of use. Several flags are a list; of a single one that depends on the version.
fn is_dormant(table: &Value) -> bool {
    let flags = &table["flags"];
    flags == "dormant" || flags.as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "dormant"))
}

fn read_chain(chain: &Value) -> Chain {
    let base = chain["hook"].as_str().map(|hook| Base {
        hook: hook.to_owned(),
        priority: chain["prio"].as_i64().unwrap_or_default(),
        kind: if chain["type"] == "nat" { Kind::Nat } else { Kind::Filter },
    });
    Chain {
        table: table(chain),
        name: text_of(chain, "name"),
        sees_ipv4: matches!(chain["family"].as_str(), Some("ip" | "inet")),
        base,
        rules: Vec::new(),
    }
}

/// One rule, or several: for a verdict by a map, and for what the rule makes of conntrack's entry before it goes on.
fn read_rule(rule: &Value, table: &str, elements: &Elements<'_>) -> Vec<Rule> {
    let mut read = Rule {
        text: format!("{table}: chain {} handle {}", text_of(rule, "chain"), rule["handle"]),
        ..Rule::default()
    };
    let (mut effects, mut by_map) = (Vec::new(), Vec::new());
    for statement in rule["expr"].as_array().map_or(&[] as &[Value], Vec::as_slice) {
        // Conditions behind the statement do not limit it.
        effects.extend(effect(statement).map(|effect| Rule { effect: Some(effect), ..read.clone() }));
        read.needs_conntrack |= needs_conntrack(statement, 0);
        if let Some(found) = statement.get("match") {
            read.conditions.extend(conditions(found, table, elements));
        } else if let Some(change) = statement.get("mangle") {
            if !always_succeeds(change) {
                read.conditions.push(Condition::Unknown);
            }
        } else if let Some(map) = statement.get("vmap") {
            for pair in elements.all(table, &map["data"]) {
                let (Some(key), Some(verdict)) = (pair.get(0), pair.get(1)) else { continue };
                let found = serde_json::json!({"op": "==", "left": map["key"], "right": key});
                by_map.push((conditions(&found, table, elements), read_verdict(verdict)));
            }
        } else if statement.get("xt").is_some() {
            read.has_xt = true;
            read.conditions.push(Condition::Unknown);
        } else if let Some(verdict) = read_verdict(statement) {
            read.verdict = verdict;
        } else if statement.get("queue").is_some() {
            read.verdict = Verdict::End;
        } else if !goes_on(statement) {
            read.conditions.push(Condition::Unknown);
        }
    }
    if by_map.is_empty() {
        effects.push(read);
        return effects;
    }
    effects.extend(by_map.into_iter().map(|(conditions, verdict)| {
        let mut rule = read.clone();
        rule.conditions.extend(conditions);
        rule.verdict = verdict.unwrap_or_default();
        rule
    }));
    effects
}

/// Whether a statement takes conntrack into use (`nf_ct_netns_get`). `notrack` does not.
fn needs_conntrack(value: &Value, depth: usize) -> bool {
    const STATEMENTS: [&str; 10] = [
        "ct",
        "ct count",
        "ct expectation",
        "ct helper",
        "ct timeout",
        "dnat",
        "masquerade",
        "redirect",
        "snat",
        "synproxy",
    ];
    let inside = |value: &Value| depth < DEEPEST && needs_conntrack(value, depth + 1);
    match value {
        Value::Array(values) => values.iter().any(inside),
        Value::Object(fields) => fields.iter().any(|(name, value)| match name.as_str() {
            "xt" => value["name"].as_str().is_some_and(iptables::needs_conntrack),
            name => STATEMENTS.contains(&name) || inside(value),
        }),
        _ => false,
    }
}

/// What a statement makes of the packet's conntrack entry.
fn effect(statement: &Value) -> Option<Effect> {
    if statement.get("notrack").is_some() {
        return Some(Effect::Untracks);
    }
    let mangle = statement.get("mangle")?;
    let changed = mangle["key"].get("ct")?;
    // Zone 0 is every packet's own.
    (changed["key"] == "zone" && mangle["value"] != 0).then_some(Effect::Zones)
}

fn read_verdict(statement: &Value) -> Option<Verdict> {
    let (name, argument) = statement.as_object()?.iter().next()?;
    let target = || argument["target"].as_str().unwrap_or_default().to_owned();
    match name.as_str() {
        "continue" => Some(Verdict::Continue),
        "accept" | "drop" | "reject" => Some(Verdict::End),
        "return" => Some(Verdict::Return),
        "jump" => Some(Verdict::Jump(target())),
        "goto" => Some(Verdict::Goto(target())),
        _ => None,
    }
}

/// Whether a rule goes on behind a statement for every packet: `limit`, `quota`, `ct count` and others end it for some
/// (`NFT_BREAK`).
fn goes_on(statement: &Value) -> bool {
    let Some((name, argument)) = statement.as_object().and_then(|fields| fields.iter().next()) else {
        return false;
    };
    match name.as_str() {
        "counter" | "log" | "last" | "notrack" | "dup" | "ct helper" | "ct timeout" | "ct expectation" => {
            true
        }
        // An element is added or updated, which fails only where the set is full. Some then ask a limit of the
        // element's own; `meter` is how older ones say that.
        "set" | "map" | "meter" => match argument.get("stmt") {
            Some(Value::Array(statements)) => statements.iter().all(goes_on),
            Some(statement) => goes_on(statement),
            None => true,
        },
        _ => false,
    }
}

/// Whether a change can be made to every packet. Where it cannot, the rule ends.
fn always_succeeds(change: &Value) -> bool {
    let key = &change["key"];
    (key.get("meta").is_some() || key.get("ct").is_some()) && is_always_there(&change["value"], 0)
}

/// Whether every packet has what an expression is made of, and no map is asked, which may not have the key.
fn is_always_there(value: &Value, depth: usize) -> bool {
    let inside = |value: &Value| depth < DEEPEST && is_always_there(value, depth + 1);
    match value {
        Value::Array(values) => values.iter().all(inside),
        Value::Object(fields) => fields.iter().all(|(name, value)| match name.as_str() {
            "meta" => value["key"] == "mark",
            "numgen" => true,
            "&" | "|" | "^" | "<<" | ">>" => inside(value),
            _ => false,
        }),
        _ => true,
    }
}

/// What a match wants of a packet.
fn conditions(found: &Value, table: &str, elements: &Elements<'_>) -> Vec<Condition> {
    let mut wanted = vec![condition(found, table, elements).unwrap_or(Condition::Unknown)];
    if elements.entries(table, &found["right"]).into_iter().any(is_limited) {
        wanted.push(Condition::Unknown);
    }
    implied(&found["left"], &mut wanted, 0);
    wanted
}

/// What a match says it wants, if that is understood.
fn condition(found: &Value, table: &str, elements: &Elements<'_>) -> Option<Condition> {
    let sense = match found["op"].as_str() {
        Some("==" | "in") => Sense::Is,
        Some("!=") => Sense::IsNot,
        _ => return None,
    };
    let (left, right) = (&found["left"], elements.all(table, &found["right"]));
    if let Some(key) = left.get("meta").and_then(|meta| meta["key"].as_str()) {
        return match key {
            "iif" | "iifname" => names(&right).map(|names| Condition::InInterface(names, sense)),
            "oif" | "oifname" => names(&right).map(|names| Condition::OutInterface(names, sense)),
            "l4proto" => all(&right, protocol).map(|protocols| Condition::Protocol(protocols, sense)),
            "nfproto" | "protocol" => {
                let is_ipv4 = right.iter().any(|value| means_ipv4(value, key));
                Some(if is_ipv4 == (sense == Sense::Is) { ALWAYS } else { NEVER })
            }
            _ => None,
        };
    }
    let payload = left.get("payload").filter(|payload| !is_inner(payload))?;
    let of = |name: &str| payload["protocol"] == name;
    match payload["field"].as_str()? {
        "daddr" if of("ip") => all(&right, addresses).map(|ranges| Condition::Destination(ranges, sense)),
        "saddr" if of("ip") => all(&right, addresses).map(|ranges| Condition::Source(ranges, sense)),
        "protocol" if of("ip") => {
            all(&right, protocol).map(|protocols| Condition::Protocol(protocols, sense))
        }
        _ => None,
    }
}

/// Holds for every IPv4 packet.
const ALWAYS: Condition = Condition::Protocol(Vec::new(), Sense::IsNot);
/// Holds for none.
const NEVER: Condition = Condition::Protocol(Vec::new(), Sense::Is);

/// What a packet has to be for there to be anything to compare: `tcp dport` also wants TCP, without saying so.
fn implied(left: &Value, wanted: &mut Vec<Condition>, depth: usize) {
    if depth >= DEEPEST {
        return;
    }
    if let Some(payload) = left.get("payload") {
        let name = payload["protocol"].as_str().filter(|_| !is_inner(payload)).unwrap_or_default();
        if matches!(name, "ip6" | "arp") {
            wanted.push(NEVER);
        } else if let Some(number) = protocol(&Value::from(name)) {
            wanted.push(Condition::Protocol(vec![number], Sense::Is));
        }
        return;
    }
    match left {
        Value::Array(values) => values.iter().for_each(|value| implied(value, wanted, depth + 1)),
        Value::Object(fields) => fields.values().for_each(|value| implied(value, wanted, depth + 1)),
        _ => {}
    }
}

/// Whether it is a header of a packet in a tunnel.
fn is_inner(payload: &Value) -> bool {
    payload.get("tunnel").is_some()
}

/// Whether a family (`nfproto`: `NFPROTO_IPV4`) or a protocol of layer 3 (`ETH_P_IP`, which nft prints with its bytes
/// swapped) is IPv4.
fn means_ipv4(value: &Value, key: &str) -> bool {
    match value.as_str() {
        Some(name) => matches!(name, "ip" | "ipv4"),
        None => match value.as_u64() {
            Some(2) => key == "nfproto",
            Some(0x0800 | 0x0008) => key == "protocol",
            _ => false,
        },
    }
}

/// Every value, if each is understood.
fn all<T>(values: &[&Value], read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    values.iter().map(|value| read(value)).collect()
}

fn names(values: &[&Value]) -> Option<Vec<String>> {
    all(values, |value| value.as_str().map(str::to_owned))
}

fn protocol(value: &Value) -> Option<u8> {
    match value.as_str() {
        Some("tcp") => Some(6),
        Some("udp") => Some(17),
        Some("icmp") => Some(1),
        Some("igmp") => Some(2),
        Some("gre") => Some(47),
        Some("esp") => Some(50),
        Some("ah") => Some(51),
        Some("icmpv6" | "ipv6-icmp") => Some(58),
        Some("comp") => Some(108),
        Some("sctp") => Some(132),
        Some("dccp") => Some(33),
        Some("udplite") => Some(136),
        Some(number) => number.parse().ok(),
        None => u8::try_from(value.as_u64()?).ok(),
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

#[cfg(test)]
mod tests;
