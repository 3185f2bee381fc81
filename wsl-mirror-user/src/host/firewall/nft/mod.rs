//! `nft -n -j list ruleset` (libnftables-json(5)).
//!
//! Only what matters here is understood; a condition that is not counts as one that may hold or not.

mod conditions;
mod elements;

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;

use serde_json::Value;

use super::ruleset::{
    Base, Chain, Condition, Effect, Kind, Policy, PortChange, Rule, Ruleset, Translation, Verdict,
};
use super::{iptables, leased, marks};
use conditions::{NEVER, conditions};
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
        policy: if chain["policy"] == "drop" { Policy::Drop } else { Policy::Accept },
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
        masquerade_ports: leased::masquerade_ports(rule),
        mark_bits: marks::of_nft(rule),
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
        } else if let Some(xt) = statement.get("xt") {
            read.has_xt = true;
            read.conditions.push(Condition::Unknown);
            let target = xt["name"].as_str().filter(|_| xt["type"] == "target").unwrap_or_default();
            if iptables::is_translation(target) {
                read.translation = Some(Translation::Unclear);
                read.verdict = Verdict::End;
            } else if iptables::is_drop(target) {
                read.verdict = Verdict::Drop;
            }
        } else if let Some(translation) = translation(statement) {
            // In a table for both families, another family's packets go on (`nft_nat_inet_eval`).
            read.conditions.extend(is_of_ipv6(&statement["dnat"]).then_some(NEVER));
            read.translation = Some(translation);
            read.verdict = Verdict::End;
        } else if let Some(verdict) = read_verdict(statement) {
            read.verdict = verdict;
        } else if statement.get("queue").is_some() {
            read.verdict = Verdict::Queue;
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

/// Where a statement sends flows.
fn translation(statement: &Value) -> Option<Translation> {
    if statement.get("redirect").is_some() {
        return Some(Translation::Unclear);
    }
    let dnat = statement.get("dnat")?;
    let change = match dnat.get("port") {
        None => Some(PortChange::Keep),
        Some(port) => port.as_u64().and_then(|port| u16::try_from(port).ok()).map(PortChange::Set),
    };
    let address = dnat["addr"].as_str().and_then(|text| text.parse().ok());
    let known = address.zip(change).map(|(address, change)| Translation::To(address, change));
    Some(known.unwrap_or(Translation::Unclear))
}

fn is_of_ipv6(dnat: &Value) -> bool {
    let is_address = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    dnat["family"] == "ip6" || dnat["addr"].as_str().is_some_and(is_address)
}

fn read_verdict(statement: &Value) -> Option<Verdict> {
    let (name, argument) = statement.as_object()?.iter().next()?;
    let target = || argument["target"].as_str().unwrap_or_default().to_owned();
    match name.as_str() {
        "continue" => Some(Verdict::Continue),
        "accept" => Some(Verdict::End),
        "drop" | "reject" => Some(Verdict::Drop),
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

#[cfg(test)]
mod tests;
