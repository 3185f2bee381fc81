//! The rule is there when `load` is: it is read, and the first packet goes by `lo`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use wsl_mirror_lab::{Lab, pace};

use super::{
    PROXY, Rule, Ways, answers_at_once, answers_udp_at_once, client, ends, is_eaten, is_eaten_udp, process,
    server, server_udp,
};
use crate::world::{AT_ONCE, HANG, HELLO, exempt, load, load_with, nft, services};

#[test]
fn ports_under_a_rule_that_load_has_read_answer_windows_and_linux_at_once() -> Result<()> {
    let lab = services()?;
    let rules = [Rule::add_both(&lab, 8080)?, Rule::add_both(&lab, 8081)?];
    let eaten = || {
        for from in ends(&lab) {
            for port in [8080, 8081] {
                is_eaten(from, port);
                is_eaten_udp(from, port);
            }
        }
    };
    eaten();
    // Steered, and still eaten.
    load_with(&lab, "delivery = \"plain\"\n")?;
    eaten();
    load(&lab)?;
    let ways = Ways::new(&lab, &[8080, 8081])?;
    for _ in 0..2 {
        for from in ends(&lab) {
            for port in [8080, 8081] {
                answers_at_once(from, port);
                answers_udp_at_once(from, port);
            }
        }
    }
    for port in [8080, 8081] {
        ways.came(port)?.all_by_lo("every packet");
    }
    assert_eq!(lab.packets("steer_learned")?, 0, "nothing was left to be learned");
    assert!(lab.packets("steer_local")? > 0, "Linux to Linux");
    for rule in rules.into_iter().flatten() {
        rule.remove()?;
    }
    lab.keep();
    Ok(())
}

#[test]
fn under_the_rule_exempt_ports_and_those_of_other_owners_are_left_to_it() -> Result<()> {
    let lab = Lab::builder().build()?;
    let mut proxy = process(&lab, PROXY)?;
    let mut other = process(&lab, "nginx")?;
    for port in [8300, 8301, 8302] {
        let process = if port == 8301 { &mut other } else { &mut proxy };
        process.serve(&format!("127.0.0.1:{port}"))?;
        process.tell(&format!("bind udp{port} udp 127.0.0.1:{port}"))?;
        process.tell(&format!("serve udp{port}"))?;
    }
    for port in [8300, 8301, 8302] {
        Rule::add_both(&lab, port)?;
    }
    load(&lab)?;
    exempt(&lab, "add", "8300")?;
    let ways = Ways::new(&lab, &[8300, 8301, 8302])?;
    for from in ends(&lab) {
        assert_eq!(server(from, 8302, AT_ONCE).context("TCP under the rule")?, PROXY);
        assert_eq!(server_udp(from, 8302, AT_ONCE).context("UDP under the rule")?, PROXY);
        // Long enough for a SYN to come twice, and a datagram.
        for port in [8300, 8301] {
            assert!(server(from, port, Duration::from_millis(1500)).is_err(), "{} to {port}", from.name());
            assert!(server_udp(from, port, HANG).is_err(), "{} to {port}", from.name());
        }
    }
    ways.came(8302)?.all_by_lo("steered");
    ways.came(8300)?.all_plain("exempt");
    ways.came(8301)?.all_plain("another owner's");
    assert_eq!(lab.packets("steer_learned")?, 0);
    exempt(&lab, "del", "8300")?;
    assert_eq!(server(lab.windows(), 8300, AT_ONCE).context("exempt no more")?, PROXY);
    Ok(())
}

#[test]
fn what_a_rule_closes_to_windows_alone_stays_closed() -> Result<()> {
    let lab = Lab::builder().build()?;
    let mut proxy = process(&lab, PROXY)?;
    for port in [8300, 8301] {
        proxy.serve(&format!("127.0.0.1:{port}"))?;
    }
    let drop = "tcp dport 8301 ip daddr 127.0.0.1 drop";
    nft(&lab, "add table ip own; add chain ip own pre { type filter hook prerouting priority raw; }")?;
    nft(&lab, &format!("add rule ip own pre iifname loopback0 {drop}"))?;
    is_eaten(lab.windows(), 8301);
    load(&lab)?;
    let ways = Ways::new(&lab, &[8300, 8301])?;
    // Long enough for a second SYN: it would teach the listener, were the rule not known for what it is.
    for from in ends(&lab) {
        assert!(server(from, 8301, Duration::from_millis(1500)).is_err(), "{} to 8301", from.name());
        assert_eq!(server(from, 8300, AT_ONCE).context("no rule is about it")?, PROXY);
    }
    ways.came(8301)?.all_plain("closed");
    assert_eq!(lab.packets("steer_learned")?, 0);
    let status = lab.status()?;
    let listed = &status["delivery"]["dropped"][0];
    assert_eq!((&listed["rule"], &listed["first_port"]), (&"closed".into(), &8301.into()), "{listed:#}");
    // The same for whatever is not on lo is meant for what comes from outside.
    nft(&lab, "flush chain ip own pre")?;
    nft(&lab, &format!("add rule ip own pre iifname != lo {drop}"))?;
    is_eaten(lab.windows(), 8301);
    load(&lab)?;
    assert_eq!(server(lab.windows(), 8301, AT_ONCE)?, PROXY);
    Ok(())
}

#[test]
fn connecting_by_lo_takes_no_longer_than_connecting_the_plain_way() -> Result<()> {
    let lab = services()?;
    let rule = Rule::add(&lab, "tcp", 8081)?;
    load(&lab)?;
    let ways = Ways::new(&lab, &[8080, 8081])?;
    let (mut plain, mut by_lo) = (Vec::new(), Vec::new());
    for _ in 0..pace::rounds(100) {
        plain.push(client(lab.windows(), 8080).connect_time(HELLO)?);
        by_lo.push(client(lab.windows(), 8081).connect_time(HELLO)?);
    }
    ways.came(8080)?.all_plain("without the rule");
    ways.came(8081)?.all_by_lo("with it");
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (plain, by_lo) = (median(plain), median(by_lo));
    println!("to connect, half of the time: {plain:?}, by lo {by_lo:?}");
    if !pace::is_emulated() {
        assert!(by_lo <= plain + Duration::from_millis(2), "plain {plain:?}, by lo {by_lo:?}");
    }
    rule.remove()?;
    lab.keep();
    Ok(())
}
