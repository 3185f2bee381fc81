//! The block of ports that Windows has leased to Linux' clients: WSL's chain of masquerading rules names it.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::ruleset::Ruleset;

/// WSL's chain in its table `ip nat`.
const CHAIN: &str = "WSLPOSTROUTING";
const TABLE: &str = "nft ip nat";

/// The block. None if no rule names one, or two rules name different ones.
pub fn block(ruleset: &Ruleset) -> Option<RangeInclusive<u16>> {
    let chains = ruleset.chains.iter().filter(|chain| chain.table == TABLE && chain.name == CHAIN);
    let mut blocks = chains.flat_map(|chain| &chain.rules).filter_map(|rule| rule.masquerade_ports.clone());
    let first = blocks.next()?;
    (!first.is_empty() && *first.start() != 0 && blocks.all(|other| other == first)).then_some(first)
}

/// The source ports that nft's rule gives to flows: `masquerade to :LO-HI`.
pub fn masquerade_ports(rule: &Value) -> Option<RangeInclusive<u16>> {
    let statements = rule["expr"].as_array()?;
    // Of one statement, nft prints a list or the statement alone.
    let inside =
        |value: &Value| value.as_array().and_then(|list| list.first()).unwrap_or(value)["port"].clone();
    let ports = statements.iter().find_map(|statement| statement.get("masquerade").map(inside))?;
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match ports.get("range") {
        Some(range) => Some(port(range.get(0)?)?..=port(range.get(1)?)?),
        None => port(&ports).map(|port| port..=port),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::host::firewall::parse_nft;

    const WSL: &str = include_str!("samples/wsl.json");

    fn of(text: &str) -> Option<RangeInclusive<u16>> {
        block(&parse_nft(text).unwrap())
    }

    #[test]
    fn wsls_chain_names_the_block() {
        assert_eq!(of(WSL), Some(44620..=48715));
    }

    #[test]
    fn another_table_names_no_block() {
        let of_ipv6 = WSL.replace("\"family\": \"ip\"", "\"family\": \"inet\"");
        assert_eq!(of(&of_ipv6), None, "ip6 nat has a chain of the same name");
        assert_eq!(of(&WSL.replace(CHAIN, "POSTROUTING")), None);
    }

    #[test]
    fn two_blocks_are_no_block() {
        let half_moved = WSL.replacen("[44620, 48715]", "[50000, 54095]", 1);
        assert_eq!(of(&half_moved), None);
        let none = WSL.replace("{\"port\": {\"range\": [44620, 48715]}}", "null");
        assert_eq!(of(&none), None);
        let backwards = WSL.replace("[44620, 48715]", "[48715, 44620]");
        assert_eq!(of(&backwards), None);
        assert_eq!(of(&WSL.replace("[44620, 48715]", "[0, 48715]")), None, "a rule's range has no port 0");
    }

    #[test]
    fn ports_are_read_in_each_form_that_nft_prints() {
        for (masquerade, ports) in [
            (json!({"port": {"range": [1024, 2047]}}), Some(1024..=2047)),
            (json!([{"port": {"range": [1024, 2047]}}]), Some(1024..=2047)),
            (json!({"port": 1024}), Some(1024..=1024)),
            (json!({"port": {"range": [1024, 2047]}, "flags": "random"}), Some(1024..=2047)),
            (json!(null), None),
            (json!({"flags": ["random"]}), None),
            (json!({"port": {"range": [1024]}}), None),
            (json!({"port": {"range": [1024, 65536]}}), None),
            (json!({"port": "1024"}), None),
            (json!([]), None),
        ] {
            let rule = json!({"expr": [{"counter": null}, {"masquerade": masquerade}]});
            assert_eq!(masquerade_ports(&rule), ports, "{rule}");
        }
        assert_eq!(masquerade_ports(&json!({"expr": [{"accept": null}]})), None);
        assert_eq!(masquerade_ports(&json!({})), None);
    }
}
