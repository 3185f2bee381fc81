//! How much is looked at, however many rules and ports there are.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::*;

/// ufw's rules with as many ports that are allowed, and as many neighbours that are denied.
fn of_ufw(count: u16) -> String {
    let mut rules = String::new();
    for port in 1..=count {
        writeln!(rules, "-A ufw-user-input -p tcp -m tcp --dport {port} -j ACCEPT").unwrap();
        writeln!(rules, "-A ufw-user-input -s 10.1.{}.{}/32 -j DROP", port >> 8, port & 255).unwrap();
    }
    let behind = "-A ufw-user-limit -m limit";
    include_str!("../../samples/ufw.save").replacen(behind, &(rules + behind), 1)
}

/// As many ports that one user may not reach.
fn of_users(count: u16) -> String {
    let mut text = "*filter\n:OUTPUT ACCEPT [0:0]\n:USERS - [0:0]\n".to_owned();
    for port in 1..=count {
        writeln!(text, "-A OUTPUT -p tcp -m tcp --dport {port} -j USERS").unwrap();
        writeln!(text, "-A USERS -p tcp -m tcp --dport {port} -m owner --uid-owner 1000 -j DROP").unwrap();
    }
    text + "COMMIT\n"
}

/// How many rules are looked at to answer for so many ports, and how long it takes to read and to answer.
fn cost(rules: fn(u16) -> String, count: u16, expected: Access) -> (usize, Duration) {
    let text = rules(count);
    let began = Instant::now();
    let access = of(parse_iptables(&text, "iptables-nft").unwrap());
    for port in 1..=count {
        assert_eq!(access.to(Tcp, port, &TRANSLATED), expected, "{port}");
    }
    let took = began.elapsed();
    (access.input.looked_at.get() + access.output.looked_at.get(), took)
}

#[test]
fn reading_is_linear_in_rules_and_ports() {
    type Rules = fn(u16) -> String;
    for (rules, expected) in [(of_ufw as Rules, Access::Open), (of_users, Access::Closed)] {
        let (mut half, mut whole) = (cost(rules, 10_000, expected), cost(rules, 20_000, expected));
        assert!(whole.0 > 0 && whole.0 <= 2 * half.0, "{} rules looked at, then {}", half.0, whole.0);
        // Reading itself is in the time. The machine may have been busy with something else.
        for _ in 0..4 {
            if whole.1 < 4 * half.1 {
                break;
            }
            half.1 = half.1.min(cost(rules, 10_000, expected).1);
            whole.1 = whole.1.min(cost(rules, 20_000, expected).1);
        }
        assert!(whole.1 < 4 * half.1, "{:?}, then {:?}", half.1, whole.1);
    }
}
