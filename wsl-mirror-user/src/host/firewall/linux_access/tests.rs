//! Forms of rules.

mod cost;
mod samples;

use std::fmt::Write as _;

use Protocol::{Tcp, Udp};

use super::super::{parse_iptables, parse_nft};
use super::*;

/// What clients of 8080 and 8081 are translated to.
const TRANSLATED: Translated<'_> = Translated {
    container: (Ipv4Addr::new(172, 17, 0, 2), 80),
    source: Ipv4Addr::new(172, 17, 0, 1),
    bridge: "docker0",
};

fn of(ruleset: Ruleset) -> LinuxAccess {
    Firewall { ruleset, ..Firewall::default() }.linux_access()
}

/// A table of iptables with these lines, one behind each `;`. Chains accept what no line says otherwise of.
fn table(name: &str, lines: &str) -> String {
    let mut text = format!("*{name}\n");
    for chain in ["INPUT", "FORWARD", "OUTPUT", "OTHER", "LAST"] {
        if !lines.contains(&format!(":{chain} ")) {
            writeln!(text, ":{chain} ACCEPT [0:0]").unwrap();
        }
    }
    text + &lines.replace(';', "\n") + "\nCOMMIT\n"
}

fn iptables(filter: &str) -> LinuxAccess {
    of(parse_iptables(&table("filter", filter), "iptables-legacy").unwrap())
}

/// The rules of raw, and those of another table.
fn raw_and(raw: &str, (name, rules): (&str, &str)) -> LinuxAccess {
    of(parse_iptables(&(table("raw", raw) + &table(name, rules)), "iptables-legacy").unwrap())
}

fn access(rules: &str, protocol: Protocol, port: u16) -> Access {
    iptables(rules).to(protocol, port, &TRANSLATED)
}

/// The ports that these rules close among 8080/tcp, 8081/tcp and 8080/udp.
fn closed(access: &LinuxAccess) -> Vec<(Protocol, u16)> {
    let mut ports = vec![(Tcp, 8080), (Tcp, 8081), (Udp, 8080)];
    ports.retain(|(protocol, port)| access.to(*protocol, *port, &TRANSLATED) == Access::Closed);
    ports
}

const NONE: &[(Protocol, u16)] = &[];
const ALL: &[(Protocol, u16)] = &[(Tcp, 8080), (Tcp, 8081), (Udp, 8080)];
const THAT: &[(Protocol, u16)] = &[(Tcp, 8080)];

#[test]
fn a_drop_on_a_loopback_interface_closes_the_port() {
    const PORT: &str = "-p tcp -m tcp --dport 8080";
    for verdict in ["DROP", "REJECT --reject-with tcp-reset", "NFQUEUE --queue-num 1"] {
        for conditions in [
            format!("-A OUTPUT {PORT}"),
            format!("-A OUTPUT -o lo {PORT}"),
            format!("-A OUTPUT -o loopback0 {PORT}"),
            format!("-A OUTPUT -d 127.0.0.0/8 {PORT}"),
            format!("-A OUTPUT -s 127.0.0.1/32 -o lo+ {PORT}"),
            format!("-A OUTPUT {PORT} -m owner --uid-owner 1000"),
            format!("-A OUTPUT {PORT} -m mark --mark 0x5"),
            format!("-A OUTPUT {PORT} -m set --match-set some dst"),
            format!("-A OUTPUT {PORT} -m conntrack --ctstate NEW"),
            format!("-A INPUT {PORT}"),
            format!("-A INPUT -i lo {PORT}"),
            format!("-A INPUT -i loopback0 {PORT}"),
            format!("-A INPUT ! -i eth0 {PORT}"),
            format!("-A INPUT {PORT} -m mark --mark 0x5"),
            format!("-A OUTPUT -j OTHER;-A OTHER {PORT}"),
            format!("-A OUTPUT -g OTHER;-A OTHER {PORT}"),
        ] {
            let rules = format!("{conditions} -j {verdict}");
            assert_eq!(closed(&iptables(&rules)), THAT, "{rules}");
        }
    }
}

#[test]
fn a_drop_for_other_packets_closes_nothing() {
    for conditions in [
        "-A OUTPUT -o eth0 -p tcp -m tcp --dport 8080",
        "-A OUTPUT -d 10.0.0.0/8",
        "-A OUTPUT ! -d 127.0.0.0/8 -p tcp -m tcp --dport 8080",
        "-A OUTPUT -p tcp -m tcp --dport 8082",
        "-A OUTPUT -p icmp",
        "-A OUTPUT -p tcp -m tcp --dport 8080 -m conntrack --ctstate INVALID",
        "-A OUTPUT -m conntrack ! --ctstate NEW",
        "-A OUTPUT -j LAST;-A OTHER",
        "-A INPUT -i eth0",
        "-A INPUT -s 10.0.0.0/8",
        "-A INPUT ! -i lo -d 127.0.0.2/32",
        "-A INPUT -m addrtype ! --dst-type LOCAL",
        "-A INPUT -m state --state INVALID",
        "-A INPUT -d 172.17.0.2/32 -p tcp -m tcp --dport 80",
        "-A FORWARD -p tcp -m tcp --dport 80",
        "-A OTHER",
    ] {
        let rules = format!("{conditions} -j DROP");
        assert_eq!(closed(&iptables(&rules)), NONE, "{rules}");
    }
    assert_eq!(closed(&iptables("-A OUTPUT -j LOG;-A OUTPUT -p tcp -j MARK --set-xmark 0x5")), NONE);
}

#[test]
fn a_drop_of_translated_packets_closes_the_port() {
    for conditions in [
        "-o docker0",
        "-o docker+",
        "! -o lo+",
        "-d 172.17.0.2/32",
        "-d 172.16.0.0/12",
        "-s 172.17.0.1/32",
        "-p tcp -m tcp --dport 80",
        "-m addrtype ! --dst-type LOCAL",
        "-p tcp -m tcp --dport 80 -m owner --uid-owner 1000",
    ] {
        let rules = format!("-A OUTPUT {conditions} -j DROP");
        assert_eq!(access(&rules, Tcp, 8080), Access::Closed, "{rules}");
    }
    for conditions in ["-o br-1", "-d 172.17.0.3/32", "-s 172.17.0.3/32", "-p tcp -m tcp --dport 81"] {
        let rules = format!("-A OUTPUT {conditions} -j DROP");
        assert_eq!(closed(&iptables(&rules)), NONE, "{rules}");
    }
}

#[test]
fn a_rule_that_translated_packets_meet_alike_closes_nothing() {
    for rules in [
        "-A OUTPUT -m owner --uid-owner 1000 -j DROP",
        "-A OUTPUT -m owner --uid-owner 1000 -m conntrack --ctstate NEW -j REJECT",
        "-A OUTPUT -m cgroup --path user.slice -j OTHER;-A OTHER -p tcp -j DROP",
        "-A OUTPUT -m owner --uid-owner 0 -j ACCEPT;-A OUTPUT -m owner --gid-owner 5 -j DROP",
        "-A OUTPUT -d 10.0.0.0/8 -j ACCEPT;-A OUTPUT -m owner --uid-owner 1000 -j DROP",
        "-A OUTPUT -j DROP",
        ":OUTPUT DROP [0:0]",
    ] {
        assert_eq!(closed(&iptables(rules)), NONE, "{rules}");
    }
    // A packet of no program: INPUT meets no translated packet.
    assert_eq!(closed(&iptables("-A INPUT -m owner --uid-owner 1000 -j DROP")), ALL);
    assert_eq!(closed(&iptables("-A INPUT -j DROP")), ALL);
}

#[test]
fn a_rule_that_meets_them_in_different_ways_closes_the_port() {
    const DROP: &str = "-A OUTPUT -m owner --uid-owner 1000 -j DROP";
    for (first, expected) in [
        // The client would get through by one of its ways.
        ("-A OUTPUT -o lo -j ACCEPT", ALL),
        ("-A OUTPUT -o loopback0 -j ACCEPT", ALL),
        ("-A OUTPUT -d 127.0.0.0/8 -j ACCEPT", ALL),
        ("-A OUTPUT -p tcp -m tcp --dport 8080 -j ACCEPT", THAT),
        // The translated client would get through.
        ("-A OUTPUT -o docker0 -j ACCEPT", ALL),
        ("-A OUTPUT -d 172.17.0.0/16 -j RETURN", ALL),
        ("-A OUTPUT -p tcp -m tcp --dport 80 -j ACCEPT", &[(Tcp, 8080), (Tcp, 8081)]),
        // It may.
        ("-A OUTPUT -m set --match-set some dst -j ACCEPT", ALL),
        ("-A OUTPUT -m mark --mark 5 -j OTHER;-A OTHER -j ACCEPT", ALL),
        ("-A OUTPUT -j OTHER;-A OTHER -m mark --mark 5 -j ACCEPT", ALL),
        ("-A OUTPUT -j OTHER;-A OTHER -m owner --uid-owner 5 -o docker0 -j ACCEPT", ALL),
        ("-A OUTPUT -j OTHER;-A OTHER -p tcp -j ACCEPT", NONE),
    ] {
        assert_eq!(closed(&iptables(&format!("{first};{DROP}"))), expected, "{first}");
    }
    for policy in
        [":OUTPUT DROP [0:0];-A OUTPUT -o lo -j ACCEPT", ":OUTPUT DROP [0:0];-A OUTPUT -o docker0 -j ACCEPT"]
    {
        assert_eq!(closed(&iptables(policy)), ALL, "{policy}");
    }
    let all_accepted = ":OUTPUT DROP [0:0];-A OUTPUT -o lo+ -j ACCEPT;-A OUTPUT -o docker0 -j ACCEPT";
    assert_eq!(closed(&iptables(all_accepted)), NONE);
}

#[test]
fn a_policy_closes_what_no_rule_accepts() {
    assert_eq!(closed(&iptables(":INPUT DROP [0:0]")), ALL);
    assert_eq!(closed(&iptables(":INPUT DROP [0:0];-A INPUT -i lo -j ACCEPT")), ALL);
    let both = ":INPUT DROP [0:0];-A INPUT -i lo -j ACCEPT;-A INPUT -i loopback0 -j ACCEPT";
    assert_eq!(closed(&iptables(both)), NONE);
    let port = ":INPUT DROP [0:0];-A INPUT -i lo -j ACCEPT;-A INPUT -p tcp -m tcp --dport 8081 -j ACCEPT";
    assert_eq!(closed(&iptables(port)), [(Tcp, 8080), (Udp, 8080)]);
    let perhaps = ":INPUT DROP [0:0];-A INPUT -m mark --mark 5 -j ACCEPT";
    assert_eq!(closed(&iptables(perhaps)), ALL);
    let returned = ":INPUT DROP [0:0];-A INPUT -g OTHER;-A OTHER -p tcp -j ACCEPT";
    assert_eq!(closed(&iptables(returned)), [(Udp, 8080)]);
    let returned = ":INPUT DROP [0:0];-A INPUT -i lo+ -j RETURN;-A INPUT -j ACCEPT";
    assert_eq!(closed(&iptables(returned)), ALL);
    assert_eq!(closed(&iptables(":FORWARD DROP [0:0]")), NONE);
}

#[test]
fn what_comes_before_a_drop_decides() {
    const DROP: &str = "-A INPUT -p tcp -m tcp --dport 8080 -j DROP";
    const ACCEPT: &str = "-A OUTPUT -j ACCEPT";
    const REFUSE: &str = "-A OUTPUT -p tcp -m tcp --dport 8080 -j DROP";
    for (first, expected) in [
        ("-A INPUT -i lo+ -j ACCEPT", NONE),
        ("-A INPUT -j OTHER;-A OTHER -s 127.0.0.1/32 -j ACCEPT", NONE),
        ("-A INPUT -g OTHER;-A OTHER -i eth0 -j ACCEPT", NONE),
        ("-A INPUT -m conntrack --ctstate NEW -j ACCEPT", NONE),
        ("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", THAT),
        ("-A INPUT -i lo -j ACCEPT", THAT),
        ("-A INPUT -m mark --mark 5 -j ACCEPT", THAT),
        ("-A INPUT -m conntrack --ctstatus DNAT -j ACCEPT", THAT),
        ("-A INPUT -j OTHER;-A OTHER -j RETURN", THAT),
    ] {
        assert_eq!(closed(&iptables(&format!("{first};{DROP}"))), expected, "{first}");
    }
    // A packet that one table accepts goes on to the next.
    assert_eq!(closed(&raw_and(ACCEPT, ("filter", REFUSE))), THAT);
    assert_eq!(closed(&raw_and(REFUSE, ("filter", ACCEPT))), THAT);
    assert_eq!(closed(&raw_and(ACCEPT, ("nat", REFUSE))), NONE);
}

#[test]
fn chains_without_an_end_keep_their_drops() {
    const DROP: &str = "-A OTHER -p tcp -m tcp --dport 8080 -j DROP";
    assert_eq!(closed(&iptables(&format!("-A OUTPUT -j OTHER;-A OTHER -j OTHER;{DROP}"))), THAT);
    assert_eq!(
        closed(&iptables(&format!("-A OUTPUT -j OTHER;{DROP};-A OTHER -j LAST;-A LAST -j OTHER"))),
        THAT
    );
    // So far down that no kernel would have it.
    let mut deep = ":0 - [0:0];-A OUTPUT -j 0".to_owned();
    (0..99).for_each(|n| write!(deep, ";:{next} - [0:0];-A {n} -j {next}", next = n + 1).unwrap());
    assert_eq!(closed(&iptables(&deep)), NONE);
    deep.push_str(";-A 99 -p tcp -m tcp --dport 8080 -j DROP");
    assert_eq!(closed(&iptables(&deep)), ALL);
}

#[test]
fn a_state_is_unclear_where_packets_may_be_untracked() {
    const UNTRACKS: &str = "-A OUTPUT -p tcp -m tcp --dport 8080 -j CT --notrack";
    const INVALID: &str =
        "-A OUTPUT -p tcp -m tcp --dport 8080 -m conntrack --ctstate INVALID,UNTRACKED -j DROP";
    assert_eq!(closed(&iptables(INVALID)), NONE);
    assert_eq!(closed(&raw_and(UNTRACKS, ("filter", INVALID))), THAT);
}

#[test]
fn a_failed_reading_closes_every_port() {
    let failed = Firewall { has_gaps: true, ..Firewall::default() };
    assert_eq!(closed(&failed.linux_access()), ALL);
    assert_eq!(closed(&Firewall::default().linux_access()), NONE);
}

#[test]
fn kubernetes_own_drop_closes_nothing() {
    let chain = ":KUBE-FIREWALL - [0:0];-A OUTPUT -j KUBE-FIREWALL;-A INPUT -j KUBE-FIREWALL";
    let marked = "-A KUBE-FIREWALL -m comment --comment dropping -m mark --mark 0x8000/0x8000 -j DROP";
    let foreign = "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT \
                   -j DROP";
    assert_eq!(closed(&iptables(&format!("{chain};{marked};{foreign}"))), NONE);
    assert_eq!(closed(&iptables("-A OUTPUT -m mark --mark 0x8000/0x8000 -j DROP")), ALL);
}

/// A chain of nft on this hook with these rules in nft's words.
fn nft(hook: &str, rules: &[&str]) -> LinuxAccess {
    let of_table = r#""family": "inet", "table": "t""#;
    let mut all = String::new();
    for rule in rules {
        write!(all, r#", {{"rule": {{{of_table}, "chain": "c", "handle": 7, "expr": [{rule}]}}}}"#).unwrap();
    }
    let chain = format!(
        r#"{{{of_table}, "name": "c", "type": "filter", "hook": "{hook}", "prio": 0, "policy": "accept"}}"#
    );
    of(parse_nft(&format!(r#"{{"nftables": [{{"chain": {chain}}}{all}]}}"#)).unwrap())
}

#[test]
fn nfts_conditions_are_understood() {
    // As nft 1.0.6 prints them with -n.
    let user = r#"{"match": {"op": "==", "left": {"meta": {"key": "skuid"}}, "right": 1000}}"#;
    let port = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}}"#;
    let state = |op: &str, right: &str| {
        format!(r#"{{"match": {{"op": "{op}", "left": {{"ct": {{"key": "state"}}}}, "right": {right}}}}}"#)
    };
    let drop = r#"{"drop": null}"#;
    assert_eq!(closed(&nft("output", &[&format!("{user}, {port}, {drop}")])), THAT);
    assert_eq!(closed(&nft("output", &[&format!("{user}, {drop}")])), NONE);
    assert_eq!(closed(&nft("input", &[&format!("{port}, {{\"reject\": null}}")])), THAT);
    assert_eq!(closed(&nft("input", &[&format!("{port}, {{\"queue\": {{\"num\": 1}}}}")])), THAT);
    for key in [
        r#""meta": {"key": "skgid"}"#,
        r#""meta": {"key": "cgroup"}"#,
        r#""socket": {"key": "cgroupv2", "level": 1}"#,
    ] {
        let rule = format!(r#"{{"match": {{"op": "!=", "left": {{{key}}}, "right": 5}}}}, {drop}"#);
        assert_eq!(closed(&nft("output", &[&rule])), NONE, "{key}");
    }
    for key in [r#""meta": {"key": "mark"}"#, r#""socket": {"key": "mark"}"#] {
        let rule = format!(r#"{{"match": {{"op": "==", "left": {{{key}}}, "right": 5}}}}, {drop}"#);
        assert_eq!(closed(&nft("output", &[&rule])), ALL, "{key}");
    }
    for (op, right, expected) in [
        ("in", "8", ALL),
        ("in", "[2, 4]", NONE),
        ("in", "[4, 8]", ALL),
        ("in", "[1, 64]", NONE),
        ("==", r#"{"set": [2, 8]}"#, ALL),
        ("==", r#"{"set": [2, 4]}"#, NONE),
        ("in", r#"["established", "related"]"#, NONE),
        ("in", r#"{"|": ["established", "new"]}"#, ALL),
        ("in", r#""invalid""#, NONE),
        ("!=", "8", NONE),
        ("!=", "2", ALL),
        ("in", r#""something""#, ALL),
    ] {
        let found = closed(&nft("input", &[&format!("{}, {drop}", state(op, right))]));
        assert_eq!(found, expected, "{op} {right}");
    }
    let map = r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [[1, {"drop": null}], [2, {"accept": null}],
                 [8, {"accept": null}]]}}}"#;
    assert_eq!(closed(&nft("input", &[map, drop])), NONE);
}

#[test]
fn a_reject_that_nft_does_not_translate_closes_the_port() {
    let rule = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}},
                  {"xt": {"type": "target", "name": "REJECT"}}"#;
    assert_eq!(closed(&nft("output", &[rule])), THAT);
    assert_eq!(closed(&nft("output", &[&rule.replace("REJECT", "LOG")])), NONE);
}
