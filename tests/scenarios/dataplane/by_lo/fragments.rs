//! Datagrams in fragments: under the rule all of them have to go the same way, and only the first one has ports.

use std::net::UdpSocket;

use anyhow::{Context as _, Result};
use wsl_mirror_lab::{
    Lab,
    checks::{load, load_with, windows_udp},
    nat,
    raw::RawSocket,
    udp,
};

use super::{PROXY, Rule, Ways, process};
use crate::world::{HANG, exempt, send_in_fragments, services, udp_datagram};

const EIGHT_KB: usize = 8192;

/// The places of the fragments of [`eight_kb`], in the orders in which they are sent.
const ORDERS: [(&str, [usize; 6]); 5] = [
    ("in order", [0, 1, 2, 3, 4, 5]),
    ("in reverse", [5, 4, 3, 2, 1, 0]),
    ("shuffled", [3, 0, 5, 1, 4, 2]),
    ("a later one first", [1, 0, 2, 3, 4, 5]),
    ("the first one last", [1, 2, 3, 4, 5, 0]),
];

fn eight_kb() -> Vec<u8> {
    (0..EIGHT_KB).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[1]).collect()
}

/// Sends [`eight_kb`] from Windows in fragments, in this order, with this identification.
fn send(nic: &RawSocket, from: u16, to: u16, id: u16, order: [usize; 6]) {
    send_in_fragments(nic, &udp_datagram(from, to, &eight_kb()), id, order);
}

/// That the datagram comes back whole.
fn comes_back(socket: &UdpSocket) -> Result<()> {
    let mut reply = vec![0; EIGHT_KB + 1];
    let length = socket.recv(&mut reply)?;
    anyhow::ensure!(reply[..length] == eight_kb(), "{length} bytes, or others than were sent");
    Ok(())
}

fn socket(lab: &Lab, from: u16, to: u16) -> Result<UdpSocket> {
    Ok(windows_udp(lab, to).from_port(from).connect()?)
}

#[test]
fn under_the_rule_fragments_in_any_order_are_answered() -> Result<()> {
    let lab = services();
    let rule = Rule::add(&lab, "udp", 8080)?;
    let client = || windows_udp(&lab, 8080);
    let ask = |client: udp::Client| client.request(&eight_kb()).map(|reply| reply.len());
    load_with(&lab, "delivery = \"plain\"\n");
    assert_eq!(ask(client().limit(HANG)), Err(udp::Failure::TimedOut), "the plain way");
    load(&lab);
    let ways = Ways::new(&lab, &[8080])?;
    for _ in 0..5 {
        assert_eq!(ask(client()), Ok(EIGHT_KB), "as Windows sends it");
    }
    let nic = RawSocket::open(lab.windows(), "winlo0")?;
    let before = nat::dnat_packets(lab.guest(), "udp", 8080)?;
    for (index, (name, order)) in (0..).zip(ORDERS) {
        let from = 40_000 + index;
        let socket = socket(&lab, from, 8080)?;
        // The first of a flow, and one within it.
        for id in [2 * index + 1, 2 * index + 2] {
            send(&nic, from, 8080, id, order);
            comes_back(&socket).with_context(|| format!("{name}, datagram {id}"))?;
        }
    }
    ways.came(8080).all_by_lo("as it is put together");
    assert!(lab.packets("steer_fragment")? > 0);
    assert_eq!(nat::dnat_packets(lab.guest(), "udp", 8080)?, before, "Docker's rule sees none of it");
    rule.remove()?;
    Ok(())
}

#[test]
fn fragments_are_not_misled_by_a_datagram_of_the_same_number_that_went_by_lo() -> Result<()> {
    let lab = services();
    let rule = Rule::add(&lab, "udp", 8080)?;
    load(&lab);
    let ways = Ways::new(&lab, &[8080, 8017])?;
    let nic = RawSocket::open(lab.windows(), "winlo0")?;
    let (by_lo, plain) = (socket(&lab, 40_100, 8080)?, socket(&lab, 40_101, 8017)?);
    for (id, (name, order)) in (100..).zip(ORDERS) {
        for round in 0..3 {
            send(&nic, 40_100, 8080, id, ORDERS[0].1);
            comes_back(&by_lo).with_context(|| format!("by lo, {name}, round {round}"))?;
            send(&nic, 40_101, 8017, id, order);
            comes_back(&plain).with_context(|| format!("plain, {name}, round {round}"))?;
            // And the other way round.
            send(&nic, 40_100, 8080, id, order);
            comes_back(&by_lo).with_context(|| format!("by lo again, {name}, round {round}"))?;
        }
    }
    ways.came(8080).all_by_lo("under the rule");
    println!("plain: {:?}", ways.came(8017));
    rule.remove()?;
    Ok(())
}

/// Nobody marks what goes there, so it must not be taken to `lo` for a moment: there it would find no way. In order only:
/// a later fragment that overtakes its first one, with the number of a datagram that went by `lo` just before, does go
/// there, and if it is the one that completes the datagram, that is lost.
#[test]
fn fragments_to_a_port_that_is_not_steered_are_not_misled_either() -> Result<()> {
    let lab = Lab::builder().build()?;
    let mut proxy = process(&lab, PROXY)?;
    for port in [8310, 8311] {
        proxy.tell(&format!("bind {port} udp 127.0.0.1:{port}"))?;
        proxy.tell(&format!("serve {port}"))?;
    }
    Rule::add(&lab, "udp", 8310)?;
    load(&lab);
    exempt(&lab, "add", "8311");
    let nic = RawSocket::open(lab.windows(), "winlo0")?;
    let (by_lo, exempt) = (socket(&lab, 40_200, 8310)?, socket(&lab, 40_201, 8311)?);
    let answered = |socket: &UdpSocket| -> Result<()> {
        let mut name = [0; 64];
        let length = socket.recv(&mut name)?;
        anyhow::ensure!(&name[..length] == PROXY.as_bytes(), "another answer");
        Ok(())
    };
    let (_, in_order) = ORDERS[0];
    for round in 0..10 {
        send(&nic, 40_200, 8310, 200, in_order);
        answered(&by_lo).with_context(|| format!("by lo, round {round}"))?;
        send(&nic, 40_201, 8311, 200, in_order);
        answered(&exempt).with_context(|| format!("exempt, round {round}"))?;
    }
    Ok(())
}
