//! How fast an attacker fills conntrack's table.

use wsl_mirror_lab::{checks::OrPanic as _, nat, pace};

use super::{
    forgery::{ALIAS, Forgery, Kind, LOCALHOST, SOURCE_ALIAS},
    network::{Carried, Machine, Network, ON_ALL, ON_LOCALHOST, PUBLISHED, Place},
};

/// How many entries are there after this attacker has sent a packet of each kind from many ports.
#[track_caller]
fn entries(network: &Network, place: Place) -> u64 {
    nat::conntrack_flush(network.lab.guest()).or_panic();
    let attacker = network.attacker(place);
    let mut port = 50_000;
    for source in [ALIAS, SOURCE_ALIAS, LOCALHOST] {
        for destination in [ALIAS, SOURCE_ALIAS, LOCALHOST] {
            for server in [ON_LOCALHOST, ON_ALL, PUBLISHED] {
                for kind in [Kind::Syn, Kind::Ack, Kind::Datagram] {
                    for _ in 0..pace::rounds(20) {
                        port += 1;
                        let forgery = Forgery {
                            kind,
                            source: (source, port),
                            destination: (destination, server),
                            number: 1,
                        };
                        for packet in forgery.packets() {
                            attacker.send(&packet);
                        }
                    }
                }
            }
        }
    }
    network.lab.guest().sysctl("net/netfilter/nf_conntrack_count").or_panic().parse().or_panic()
}

#[test]
fn an_attacker_fills_conntracks_table_no_faster() {
    let direct = (Machine::ALL[0], Carried::Direct);
    for (machine, carried) in
        Machine::ALL.map(|machine| (machine, Carried::Steered)).into_iter().chain([direct])
    {
        let network = Network::new(machine);
        let without = Place::ALL.map(|place| entries(&network, place));
        network.load(carried);
        let with = Place::ALL.map(|place| entries(&network, place));
        println!("{machine:?}: {with:?} entries with wsl-mirror, {without:?} without");
        for (place, (with, without)) in Place::ALL.into_iter().zip(with.into_iter().zip(without)) {
            // A few are of other traffic, or expire meanwhile.
            assert!(
                with <= without + without / 20 + 5,
                "{machine:?} {place:?}: {with} entries, {without} without"
            );
        }
    }
}
