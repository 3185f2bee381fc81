//! What a match of nft wants of a packet.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::super::ruleset::{Condition, Sense};
use super::elements::{DEEPEST, Elements};

/// What a match wants of a packet.
pub fn conditions(found: &Value, table: &str, elements: &Elements<'_>) -> Vec<Condition> {
    let mut wanted = concatenated(found, table, elements)
        .unwrap_or_else(|| vec![condition(found, table, elements).unwrap_or(Condition::Unknown)]);
    if elements.entries(table, &found["right"]).into_iter().any(is_limited) {
        wanted.push(Condition::Unknown);
    }
    implied(&found["left"], &mut wanted, 0);
    wanted
}

/// Whether an element comes with something that has to hold as well: a set may have a limit for each of them.
fn is_limited(value: &Value) -> bool {
    let details = value.get("elem").and_then(Value::as_object);
    details.is_some_and(|details| {
        let harmless = ["val", "timeout", "expires", "comment", "counter", "last"];
        details.keys().any(|name| !harmless.contains(&name.as_str()))
    })
}

/// The conditions of a match on several fields at once, one for each. A set of such values is not understood.
fn concatenated(found: &Value, table: &str, elements: &Elements<'_>) -> Option<Vec<Condition>> {
    let parts = found["left"].get("concat")?.as_array()?;
    let [value] = elements.all(table, &found["right"])[..] else { return None };
    let values = value.get("concat")?.as_array()?;
    if found["op"] != "==" || parts.len() != values.len() {
        return None;
    }
    let each = parts.iter().zip(values).map(|(left, right)| {
        let found = serde_json::json!({"op": "==", "left": left, "right": right});
        condition(&found, table, elements).unwrap_or(Condition::Unknown)
    });
    Some(each.collect())
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
            "skuid" | "skgid" | "cgroup" => Some(Condition::Sender),
            "nfproto" | "protocol" => {
                let is_ipv4 = right.iter().any(|value| means_ipv4(value, key));
                Some(if is_ipv4 == (sense == Sense::Is) { ALWAYS } else { NEVER })
            }
            _ => None,
        };
    }
    if left.get("socket").is_some_and(|socket| socket["key"] == "cgroupv2") {
        return Some(Condition::Sender);
    }
    if left.get("ct").is_some_and(|ct| ct["key"] == "state") {
        let is_for_new = all(&right, |value| is_for_new(value, 0))?.contains(&true);
        return Some(Condition::FlowState { is_for_new: is_for_new == (sense == Sense::Is) });
    }
    if let Some(fib) = left.get("fib") {
        // `nft -n` prints `local` as RTN_LOCAL (2). Some versions print a single flag without a list.
        let is_local = matches!(right[..], [value] if value == "local" || value == 2);
        let of_destination = fib["flags"] == "daddr" || fib["flags"] == serde_json::json!(["daddr"]);
        let is_known = is_local && of_destination && fib["result"] == "type";
        return is_known.then_some(Condition::LocalDestination(sense));
    }
    let payload = left.get("payload").filter(|payload| !is_inner(payload))?;
    let of = |name: &str| payload["protocol"] == name;
    match payload["field"].as_str()? {
        "daddr" if of("ip") => all(&right, addresses).map(|ranges| Condition::Destination(ranges, sense)),
        "saddr" if of("ip") => all(&right, addresses).map(|ranges| Condition::Source(ranges, sense)),
        "protocol" if of("ip") => {
            all(&right, protocol).map(|protocols| Condition::Protocol(protocols, sense))
        }
        "dport" if TRANSPORTS.iter().any(|name| of(name)) => {
            all(&right, port).map(|ports| Condition::DestinationPort(ports, sense))
        }
        _ => None,
    }
}

/// Headers that begin with a source and a destination port; `th` is whichever a packet has.
const TRANSPORTS: [&str; 6] = ["th", "tcp", "udp", "udplite", "sctp", "dccp"];

/// Holds for every IPv4 packet.
const ALWAYS: Condition = Condition::Protocol(Vec::new(), Sense::IsNot);
/// Holds for none.
pub const NEVER: Condition = Condition::Protocol(Vec::new(), Sense::Is);

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

/// Whether `new` is among these states, which are bits with `-n` (`NF_CT_STATE_BIT`). Several are a list.
fn is_for_new(value: &Value, depth: usize) -> Option<bool> {
    if let Some(several) = value.as_array().or_else(|| value["|"].as_array()).filter(|_| depth < DEEPEST) {
        let each: Option<Vec<bool>> = several.iter().map(|value| is_for_new(value, depth + 1)).collect();
        return each.map(|each| each.contains(&true));
    }
    match value.as_str() {
        Some("new") => Some(true),
        Some("established" | "related" | "invalid" | "untracked") => Some(false),
        Some(_) => None,
        None => value.as_u64().map(|bits| bits & 8 != 0),
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

fn port(value: &Value) -> Option<RangeInclusive<u16>> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match value.get("range") {
        Some(range) => Some(port(range.get(0)?)?..=port(range.get(1)?)?),
        None => port(value).map(|port| port..=port),
    }
}

pub fn addresses(value: &Value) -> Option<RangeInclusive<u32>> {
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
