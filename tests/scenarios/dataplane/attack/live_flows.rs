//! Resets that fit a live flow exactly: of an attacker who knows the sequence numbers.

use std::{collections::BTreeSet, time::Duration};

use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, windows},
    raw::RawSocket,
    tcp,
};

use super::{
    forgery::{ALIAS, Address, Forgery, LOCALHOST, SOURCE_ALIAS},
    network::{Carried, Machine, Network, ON_LOCALHOST, PUBLISHED, Place},
    thinned,
};

/// From where, with which source and destination, and whether it is the client's: a reset that ended the flow.
type Ending = (Place, Address, Address, bool);

/// Which resets end a live flow of their own.
#[track_caller]
fn endings(network: &Network, server: u16, ports: &mut std::ops::RangeFrom<u16>) -> BTreeSet<Ending> {
    let mut all = Vec::new();
    for place in [Place::Container, Place::Neighbour] {
        for source in [ALIAS, SOURCE_ALIAS, LOCALHOST, place.own()] {
            for destination in [ALIAS, SOURCE_ALIAS, LOCALHOST] {
                all.extend([true, false].map(|of_client| (place, source, destination, of_client)));
            }
        }
    }
    let attackers = network.attackers();
    let sniffer = RawSocket::open(network.lab.windows(), "winlo0").or_panic();
    let is_ended_by = |(place, source, destination, of_client): &Ending| {
        let client = ports.next().unwrap_or(0);
        let flow = windows(&network.lab, server).from_port(client).reset_on_close();
        let mut flow = flow.connect().or_panic();
        tcp::exchange(&mut flow, HELLO).or_panic();
        let (from, to) = if *of_client { (client, server) } else { (server, client) };
        let sequence = next_sequence(&sniffer, from, to);
        attackers[place].send(&Forgery::reset((*source, from), (*destination, to), sequence));
        tcp::exchange(&mut flow, HELLO).is_err()
    };
    thinned(all).filter(is_ended_by).collect()
}

/// The number of the next byte in this direction of a flow.
#[track_caller]
fn next_sequence(sniffer: &RawSocket, from: u16, to: u16) -> u32 {
    let frames = sniffer.collect(Duration::ZERO, |frame| frame.ports() == Some((6, from, to))).or_panic();
    let Some(packet) = frames.last().and_then(|frame| frame.ipv4()) else {
        panic!("no frame of the flow was seen")
    };
    let length = u32::from(u16::from_be_bytes([packet[2], packet[3]]));
    let headers = 20 + u32::from(packet[32] >> 4) * 4;
    u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]) + length - headers
}

#[test]
fn exact_resets_end_no_more_flows() {
    // FORWARD's policy has no part in it.
    for machine in [Machine::ALL[0], Machine::ALL[3]] {
        let network = Network::new(machine);
        let mut ports = 43_000..;
        let without = endings(&network, ON_LOCALHOST, &mut ports);
        network.load(Carried::Steered);
        let with = endings(&network, ON_LOCALHOST, &mut ports);
        println!("{machine:?}: with wsl-mirror {with:?}, without {without:?}");
        let more: Vec<_> = with
            .difference(&without)
            // Known to be open, see the module.
            .filter(|(_, source, destination, of_client)| {
                let answers = !*of_client && *source == ALIAS && *destination == LOCALHOST;
                let is_old = !network.lab.is_at_least((6, 2)).or_panic();
                !(*of_client && *source == LOCALHOST && *destination == ALIAS || answers && is_old)
            })
            .collect();
        assert!(more.is_empty(), "{machine:?}: {more:?}");
    }
}

/// The container's own addresses are no secret either, but no attacker is where they are.
#[test]
fn exact_resets_end_no_direct_flow() {
    for machine in [Machine::ALL[0], Machine::ALL[3]] {
        let network = Network::new(machine);
        network.load(Carried::Direct);
        let ended = endings(&network, PUBLISHED, &mut (43_000..));
        assert!(ended.is_empty(), "{machine:?}: {ended:?}");
        assert!(network.lab.packets("direct_new").or_panic() > 0);
    }
}
