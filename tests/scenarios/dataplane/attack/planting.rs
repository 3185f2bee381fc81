//! Entries that an attacker plants in conntrack's table where a client's next flow will be.

use std::{thread, time::Duration};

use wsl_mirror_lab::{
    checks::{HELLO, OrPanic as _, windows, windows_udp},
    nat, pace, udp,
};

use super::{
    forgery::{ALIAS, Address, Forgery, Kind, LOCALHOST, SOURCE_ALIAS},
    network::{Carried, Machine, Network, ON_LOCALHOST, PUBLISHED, Place},
    thinned,
};

/// Longer than the client's second SYN takes, after a second; shorter than a third would.
const LIMIT: Duration = Duration::from_millis(2500);

/// A packet from the client's next port, or to it.
#[derive(Debug, Clone, Copy)]
struct Plant {
    client: Address,
    server: Address,
    /// Whether the packet goes from the client to the server.
    is_question: bool,
}

const fn plant(client: Address, server: Address, is_question: bool) -> Plant {
    Plant { client, server, is_question }
}

const PLANTS: [Plant; 8] = [
    plant(LOCALHOST, ALIAS, true),
    plant(LOCALHOST, ALIAS, false),
    plant(ALIAS, LOCALHOST, true),
    plant(LOCALHOST, LOCALHOST, true),
    plant(LOCALHOST, LOCALHOST, false),
    // Where a direct flow's entry will be.
    plant(SOURCE_ALIAS, ALIAS, true),
    plant(SOURCE_ALIAS, ALIAS, false),
    plant(ALIAS, SOURCE_ALIAS, true),
];

/// What is sent, one after the other.
const KINDS: [&[Kind]; 4] = [&[Kind::Syn], &[Kind::Syn, Kind::Reset], &[Kind::Ack], &[Kind::Datagram]];

impl Plant {
    fn forgery(self, kind: Kind, client: u16, server: u16) -> Forgery {
        let (client, server) = ((self.client, client), (self.server, server));
        let (source, destination) = if self.is_question { (client, server) } else { (server, client) };
        Forgery { kind, source, destination, number: 1 }
    }
}

/// Plants by these packets, and then connects from the port.
#[track_caller]
fn assert_clients_get_through(machine: Machine, carried: Carried) {
    let network = Network::new(machine);
    network.load(carried);
    let (plants, servers) = match carried {
        Carried::Steered => (&PLANTS[..5], [ON_LOCALHOST, PUBLISHED].as_slice()),
        Carried::Direct => (&PLANTS[..], [PUBLISHED].as_slice()),
    };
    let mut all = Vec::new();
    for place in [Place::Container, Place::Neighbour] {
        for plant in plants {
            for server in servers {
                all.extend(KINDS.map(|kinds| (place, *plant, *server, kinds)));
            }
        }
    }
    let attackers = network.attackers();
    let mut failures = Vec::new();
    for ((place, plant, server, kinds), client) in thinned(all).zip(42_000..) {
        for kind in kinds {
            let packets = plant.forgery(*kind, client, server).packets();
            for packet in packets {
                attackers[&place].send(&packet);
            }
        }
        if let Err(failure) = reach(&network, server, client, kinds[0].protocol()) {
            failures.push(format!("{place:?} {plant:?} {kinds:?} port {server}: {failure}"));
        }
    }
    assert!(failures.is_empty(), "blocked:\n{}", failures.join("\n"));
}

/// The client gets through: TCP at the latest with its second SYN, UDP with its second datagram.
fn reach(network: &Network, server: u16, client: u16, protocol: u8) -> Result<(), String> {
    let lab = &network.lab;
    if protocol == 6 {
        let client = windows(lab, server).from_port(client).limit(pace::limit(LIMIT)).reset_on_close();
        return client.echo(HELLO).map(drop).map_err(|failure| failure.to_string());
    }
    let limit = pace::limit(Duration::from_millis(100));
    let socket = windows_udp(lab, server).from_port(client).limit(limit).connect().or_panic();
    let mut answer = udp::exchange(&socket, HELLO);
    // An answer to the forgery may come first.
    while let Err(udp::Failure::Corrupt(_)) = answer {
        answer = udp::exchange(&socket, HELLO);
    }
    if answer.is_err() {
        thread::sleep(Duration::from_millis(10));
        socket.set_read_timeout(Some(udp::limit())).or_panic();
        answer = udp::exchange(&socket, HELLO);
    }
    answer.map(drop).map_err(|failure| failure.to_string())
}

#[test]
fn planted_entries_block_no_client() {
    assert_clients_get_through(
        Machine { bridge_routes_localnet: false, forward: "accept" },
        Carried::Steered,
    );
}

#[test]
fn planted_entries_block_no_client_of_a_bridge_with_localnet() {
    assert_clients_get_through(Machine { bridge_routes_localnet: true, forward: "drop" }, Carried::Steered);
}

#[test]
fn planted_entries_block_no_direct_client() {
    assert_clients_get_through(Machine { bridge_routes_localnet: false, forward: "accept" }, Carried::Direct);
}

/// The neighbour's packet to the alias meets the engine's DNAT. Its entry leads to the container, and so would the
/// client's packets.
#[test]
fn an_engines_entry_on_the_alias_carries_no_flow() {
    let network = Network::new(Machine { bridge_routes_localnet: false, forward: "accept" });
    network.load(Carried::Steered);
    let neighbour = network.attacker(Place::Neighbour);
    for (client, kind) in [(42_000, Kind::Syn), (42_001, Kind::Datagram)] {
        for packet in PLANTS[0].forgery(kind, client, PUBLISHED).packets() {
            neighbour.send(&packet);
        }
        let port = format!("sport={client}");
        let entries = nat::conntrack_with(network.lab.guest(), &["dst=127.119.0.1", &port]).or_panic();
        assert!(
            entries.iter().any(|entry| entry.contains("src=172.30.0.3")),
            "nothing was planted: {entries:?}"
        );
        assert_eq!(reach(&network, PUBLISHED, client, kind.protocol()), Ok(()), "{kind:?}");
    }
}
