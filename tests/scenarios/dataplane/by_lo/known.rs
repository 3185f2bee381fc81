//! The rule is there when `load` is: it is read, and the first packet goes by `lo`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use wsl_mirror_lab::{
    Lab, Sockets,
    checks::{HELLO, load, load_with, nft},
    loopback, nat, pace, udp,
};

use super::{
    PROXY, Rule, Ways, answers_at_once, answers_udp_at_once, client, ends, is_eaten, is_eaten_udp, process,
    server, server_udp, server_udp_to,
};
use crate::world::{AT_ONCE, HANG, exempt, services};

#[test]
fn ports_under_a_rule_that_load_has_read_answer_windows_and_linux_at_once() -> Result<()> {
    let lab = services();
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
    load_with(&lab, "delivery = \"plain\"\n");
    eaten();
    load(&lab);
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
        ways.came(port).all_by_lo("every packet");
    }
    assert_eq!(lab.packets("steer_learned")?, 0, "nothing was left to be learned");
    assert!(lab.packets("steer_local")? > 0, "Linux to Linux");
    for rule in rules.into_iter().flatten() {
        rule.remove()?;
    }
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
    load(&lab);
    exempt(&lab, "add", "8300");
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
    ways.came(8302).all_by_lo("steered");
    ways.came(8300).all_plain("exempt");
    ways.came(8301).all_plain("another owner's");
    assert_eq!(lab.packets("steer_learned")?, 0);
    exempt(&lab, "del", "8300");
    assert_eq!(server(lab.windows(), 8300, AT_ONCE).context("exempt no more")?, PROXY);
    Ok(())
}

/// Nobody sees the end of a UDP flow, and a client's port comes round.
#[test]
fn a_datagram_within_linux_is_judged_by_who_serves_the_port_now() -> Result<()> {
    const PORT: u16 = 8310;
    let lab = Lab::builder().build()?;
    let serve = |name: &str| -> Result<Sockets> {
        let mut process = process(&lab, name)?;
        process.tell(&format!("bind here udp 127.0.0.1:{PORT}"))?;
        process.tell("serve here")?;
        Ok(process)
    };
    let client = udp::Client::new(lab.guest(), loopback(PORT)).from_port(45_000).limit(pace::limit(AT_ONCE));
    let served_by = || server_udp_to(&client);
    let ways = Ways::new(&lab, &[PORT])?;
    let rule = Rule::add(&lab, "udp", PORT)?;
    load(&lab);
    let proxy = serve(PROXY)?;
    let (name, came) = ways.during(PORT, served_by)?;
    assert_eq!(name, PROXY);
    came.all_by_lo("under the rule");
    // The container goes, and its rule; somebody else takes the port. The entry lasts for half a minute at least.
    drop(proxy);
    rule.remove()?;
    load(&lab);
    nat::conntrack_flush(lab.guest())?;
    let _other = serve("resolver")?;
    let (name, came) = ways.during(PORT, served_by)?;
    assert_eq!(name, "resolver");
    came.all_plain("who serves it is none of ours");
    Ok(())
}

#[test]
fn a_udp_flow_that_an_engine_carried_is_steered_under_a_rule_that_drops_it_before_the_engine() -> Result<()> {
    // Nobody binds the port while the engine has it.
    let lab = Lab::builder().sends_always([8320..=8320]).build()?;
    let mut container = process(&lab, "container")?;
    container.tell("bind there udp 127.0.0.1:8321")?;
    container.tell("serve there")?;
    let client = udp::Client::new(lab.windows(), loopback(8320)).from_port(40_320);
    let served_by = |limit| server_udp_to(&client.clone().limit(limit));
    nft(&lab, "add table ip engine; add chain ip engine pre { type nat hook prerouting priority dstnat; }");
    nft(&lab, "add rule ip engine pre udp dport 8320 dnat to 127.0.0.1:8321");
    load(&lab);
    // Of the first datagram nothing is known yet.
    for _ in 0..2 {
        assert_eq!(served_by(pace::limit(AT_ONCE)).context("an engine without a proxy")?, "container");
    }
    assert!(lab.packets("pass_engine_nat")? >= 1);
    nft(&lab, "delete table ip engine");
    nat::conntrack_flush(lab.guest())?;
    let mut proxy = process(&lab, PROXY)?;
    proxy.tell("bind here udp 127.0.0.1:8320")?;
    proxy.tell("serve here")?;
    Rule::add(&lab, "udp", 8320)?;
    assert!(served_by(HANG).is_err(), "the rule is not known yet");
    load(&lab);
    assert_eq!(served_by(pace::limit(AT_ONCE))?, PROXY);
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
    nft(&lab, "add table ip own; add chain ip own pre { type filter hook prerouting priority raw; }");
    nft(&lab, &format!("add rule ip own pre iifname loopback0 {drop}"));
    is_eaten(lab.windows(), 8301);
    load(&lab);
    let ways = Ways::new(&lab, &[8300, 8301])?;
    // Long enough for a second SYN: it would teach the listener, were the rule not known for what it is.
    for from in ends(&lab) {
        assert!(server(from, 8301, Duration::from_millis(1500)).is_err(), "{} to 8301", from.name());
        assert_eq!(server(from, 8300, AT_ONCE).context("no rule is about it")?, PROXY);
    }
    ways.came(8301).all_plain("closed");
    assert_eq!(lab.packets("steer_learned")?, 0);
    let status = lab.status()?;
    let listed = &status["delivery"]["dropped"][0];
    assert_eq!((&listed["rule"], &listed["first_port"]), (&"closed".into(), &8301.into()), "{listed:#}");
    // The same for whatever is not on lo is meant for what comes from outside.
    nft(&lab, "flush chain ip own pre");
    nft(&lab, &format!("add rule ip own pre iifname != lo {drop}"));
    is_eaten(lab.windows(), 8301);
    load(&lab);
    assert_eq!(server(lab.windows(), 8301, AT_ONCE)?, PROXY);
    Ok(())
}

#[test]
fn connecting_by_lo_takes_no_longer_than_connecting_the_plain_way() -> Result<()> {
    let lab = services();
    let rule = Rule::add(&lab, "tcp", 8081)?;
    load(&lab);
    let ways = Ways::new(&lab, &[8080, 8081])?;
    let (mut plain, mut by_lo) = (Vec::new(), Vec::new());
    for _ in 0..pace::rounds(100) {
        plain.push(client(lab.windows(), 8080).connect_time(HELLO)?);
        by_lo.push(client(lab.windows(), 8081).connect_time(HELLO)?);
    }
    ways.came(8080).all_plain("without the rule");
    ways.came(8081).all_by_lo("with it");
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
    Ok(())
}
