//! Every pair of addresses, every kind of packet, from every place, on every machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, thread,
    time::Duration,
};

use wsl_mirror_lab::{BRIDGE, Delivered, Lab, checks::OrPanic as _, nat, pace, raw::RawSocket};

use super::{
    forgery::{ALIAS, End, Forgery, Kind, LOCALHOST, Quoted, SOURCE_ALIAS, trace},
    network::{
        Carried, FLOWS, IN_CONTAINER, Live, Machine, Network, ON_ALL, ON_LOCALHOST, ON_WINDOWS, PUBLISHED,
        Place,
    },
    thinned,
};

/// How long nothing may happen for an attack to be over.
const QUIET: Duration = Duration::from_millis(60);

/// What is sent.
fn forgeries() -> Vec<(Place, Forgery)> {
    let mut all = Vec::new();
    let mut strangers = 50_000_u16..;
    for place in Place::ALL {
        let mut add = |kind, source, destination| {
            let number = u32::try_from(all.len()).unwrap_or(u32::MAX);
            all.push((place, Forgery { kind, source, destination, number }));
        };
        for source in [ALIAS, SOURCE_ALIAS, LOCALHOST, place.own()] {
            for destination in [ALIAS, SOURCE_ALIAS, LOCALHOST] {
                let kinds = || Kind::OF_TCP.into_iter().chain(Kind::OF_UDP);
                let mut of_flows = Vec::new();
                for (port, client) in FLOWS {
                    of_flows.push((port, ON_WINDOWS));
                    // No live flow has other addresses.
                    let is_direct = [source, destination] == [SOURCE_ALIAS, ALIAS]
                        || [source, destination] == [ALIAS, SOURCE_ALIAS];
                    if source[0] == 127 && destination[0] == 127 || is_direct && port == PUBLISHED {
                        of_flows.extend([(client, port), (port, client)]);
                    }
                }
                for (from, to) in of_flows {
                    kinds().for_each(|kind| add(kind, (source, from), (destination, to)));
                }
                for port in [ON_LOCALHOST, ON_ALL, PUBLISHED, ON_WINDOWS] {
                    // Each from a port of its own: none depends on what became of the one before.
                    for (kind, stranger) in kinds().zip(&mut strangers) {
                        add(kind, (source, stranger), (destination, port));
                    }
                }
                for quoted in quotable() {
                    add(Kind::Unreachable(quoted), (source, 0), (destination, 0));
                    add(Kind::TooBig(quoted), (source, 0), (destination, 0));
                }
            }
        }
    }
    thinned(all).collect()
}

/// A packet of each live flow in each direction, by every name that the flow has.
fn quotable() -> Vec<Quoted> {
    let mut all = Vec::new();
    for (port, client) in FLOWS {
        let names = [(LOCALHOST, LOCALHOST), (LOCALHOST, ALIAS), (SOURCE_ALIAS, ALIAS)];
        for (of_client, address) in names.into_iter().filter(|name| name.0 == LOCALHOST || port == PUBLISHED)
        {
            for protocol in [6, 17] {
                let (client, server): (End, End) = ((of_client, client), (address, port));
                all.push(Quoted { protocol, source: client, destination: server });
                all.push(Quoted { protocol, source: server, destination: client });
            }
        }
    }
    all
}

/// Who received something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Receiver {
    /// A service of the guest.
    Guest { protocol: u8, port: u16 },
    /// A port of Windows; whether it takes the packet for one of this machine's.
    Windows { protocol: u8, port: u16, from_localhost: bool },
    /// The container's service.
    Container { protocol: u8 },
}

/// What an attack did.
#[derive(Debug, Default)]
struct Outcome {
    /// Who received something of which forgery.
    reached: BTreeSet<(u32, Receiver)>,
    /// Where packets with an alias left the guest, by forgery.
    left: BTreeSet<(u32, &'static str)>,
    /// How many frames went over `loopback0`.
    frames: usize,
    /// The live flows that did not survive.
    ended: Vec<String>,
}

/// All who listen while an attack goes on.
struct Watch<'a> {
    network: &'a Network,
    guest: Delivered,
    windows: Delivered,
    container: Delivered,
    nics: [(&'static str, RawSocket); 4],
}

impl<'a> Watch<'a> {
    #[track_caller]
    fn new(network: &'a Network) -> Self {
        let (guest, windows) = (network.lab.guest(), network.lab.windows());
        let nic = |namespace, name| RawSocket::open(namespace, name).or_panic();
        Self {
            network,
            guest: Delivered::open(guest).or_panic(),
            windows: Delivered::open(windows).or_panic(),
            container: Delivered::open(&network.server).or_panic(),
            nics: [
                ("loopback0", nic(guest, "loopback0")),
                ("eth0", nic(guest, "eth0")),
                (BRIDGE, nic(guest, BRIDGE)),
                ("winlo0", nic(windows, "winlo0")),
            ],
        }
    }

    /// Notes what has come by now; how much.
    #[track_caller]
    fn note(&self, outcome: &mut Outcome) -> usize {
        let mut count = 0;
        for packet in self.guest.take().or_panic() {
            let Some(trace) = trace(&packet) else { continue };
            let (address, port) = trace.destination;
            let is_served = match port {
                ON_ALL | PUBLISHED => true,
                ON_LOCALHOST => address == LOCALHOST,
                // An ICMP error has no port; it reaches a socket by what it quotes.
                0 => address[0] == 127,
                _ => false,
            };
            if is_served && !trace.is_answer {
                outcome.reached.insert((trace.number, Receiver::Guest { protocol: trace.protocol, port }));
            }
            count += 1;
        }
        for packet in self.windows.take().or_panic() {
            let Some(trace) = trace(&packet) else { continue };
            let (protocol, port) = (trace.protocol, trace.destination.1);
            let from_localhost = trace.source.0 == LOCALHOST;
            outcome.reached.insert((trace.number, Receiver::Windows { protocol, port, from_localhost }));
            count += 1;
        }
        for packet in self.container.take().or_panic() {
            let Some(trace) = trace(&packet) else { continue };
            if trace.destination.1 == IN_CONTAINER && !trace.is_answer {
                outcome.reached.insert((trace.number, Receiver::Container { protocol: trace.protocol }));
            }
            count += 1;
        }
        for (name, nic) in &self.nics {
            for frame in nic.collect(Duration::ZERO, |_| true).or_panic() {
                count += 1;
                outcome.frames += usize::from(*name == "loopback0");
                // A frame has left the guest if the guest's NIC sent it, or Windows' received it.
                if frame.outgoing == (*name == "winlo0") {
                    continue;
                }
                let Some(packet) = frame.ipv4() else { continue };
                let is_alias = |address: &[u8]| address == ALIAS || address == SOURCE_ALIAS;
                if packet.get(12..20).is_some_and(|ends| is_alias(&ends[..4]) || is_alias(&ends[4..])) {
                    let number = trace(packet).map_or(u32::MAX, |trace| trace.number);
                    outcome.left.insert((number, name));
                }
            }
        }
        count
    }

    /// Sends all forgeries and waits until nothing happens any more.
    #[track_caller]
    fn attack(&self, forgeries: &[(Place, Forgery)]) -> Outcome {
        let attackers = self.network.attackers();
        let mut outcome = Outcome::default();
        for some in forgeries.chunks(64) {
            for (place, forgery) in some {
                for packet in forgery.packets() {
                    attackers[place].send(&packet);
                }
            }
            self.note(&mut outcome);
        }
        let mut rounds = 0;
        loop {
            thread::sleep(pace::limit(QUIET));
            // TCP sends its SYN+ACKs again; a packet that circles is seen a thousand times as often.
            if self.note(&mut outcome) < 100 {
                return outcome;
            }
            rounds += 1;
            assert!(rounds < 20, "the network does not come to rest: a packet circles");
        }
    }
}

/// Attacks while there are live flows to these ports.
#[track_caller]
fn attack(network: &Network, forgeries: &[(Place, Forgery)], live: &[(u16, u16)]) -> Outcome {
    nat::conntrack_flush(network.lab.guest()).or_panic();
    let mut flows: Vec<_> =
        live.iter().map(|(port, client)| Live::begin(&network.lab, *port, *client)).collect();
    let mut outcome = Watch::new(network).attack(forgeries);
    outcome.ended = flows.iter_mut().flat_map(Live::survives).collect();
    outcome
}

/// What wsl-mirror is there for: Windows and a published port.
fn is_healed(place: Place, forgery: &Forgery) -> bool {
    let (source, destination) = (forgery.source, forgery.destination);
    let published = (LOCALHOST, PUBLISHED);
    let is_loopback = source.0[0] == 127 && destination.0[0] == 127;
    place == Place::Windows && is_loopback && (source == published || destination == published)
}

/// What the source alias opens, see the module: Windows' own flow, and P's listener instead of the container behind it.
fn is_from_the_source_alias(place: Place, forgery: &Forgery, receiver: Receiver) -> bool {
    let is_flow = FLOWS.contains(&(forgery.destination.1, forgery.source.1));
    let is_listener =
        place == Place::Neighbour && receiver == Receiver::Guest { protocol: 17, port: PUBLISHED };
    forgery.source.0 == SOURCE_ALIAS
        && forgery.destination.0 == ALIAS
        && is_flow
        && (place == Place::Windows || is_listener)
}

/// What reaches nobody's service: the ICMP errors by which the guest answers, and the answer to a SYN with the ends of a
/// live flow. Without wsl-mirror the flow's own socket answers the SYN, by an ACK that bears no number. With it the flow
/// has other ends where the SYN comes in, NAT takes another port for the SYN, and the listener answers.
fn is_answered_otherwise(forgery: &Forgery, receiver: Receiver) -> bool {
    let (port, client) = (forgery.destination.1, forgery.source.1);
    match receiver {
        Receiver::Guest { protocol: 1, .. } | Receiver::Windows { protocol: 1, .. } => {
            !forgery.kind.is_icmp()
        }
        Receiver::Windows { protocol: 6, port: to, from_localhost: true } => {
            forgery.kind == Kind::Syn
                && forgery.source.0 == LOCALHOST
                && forgery.destination.0 == LOCALHOST
                && FLOWS.contains(&(port, client))
                && to == client
        }
        _ => false,
    }
}

/// The first of many, one a line.
fn lines(many: &[impl fmt::Debug]) -> String {
    many.iter().take(40).map(|one| format!("{one:?}")).collect::<Vec<_>>().join("\n")
}

/// That wsl-mirror opens nothing. `left_before` left the guest without wsl-mirror.
#[track_caller]
fn assert_no_more(
    lab: &Lab,
    forgeries: &[(Place, Forgery)],
    without: &Outcome,
    left_before: &BTreeSet<(u32, &'static str)>,
    with: &Outcome,
) {
    let known: BTreeMap<_, _> =
        forgeries.iter().map(|(place, forgery)| (forgery.number, (*place, forgery))).collect();
    let is_client = |port| FLOWS.iter().any(|(_, client)| *client == port);
    // What became of one forgery may depend on the one before it with the same ends.
    let ends = |number| {
        let (place, forgery): (Place, &Forgery) = known[&number];
        (place, forgery.kind.protocol(), forgery.source, forgery.destination)
    };
    let before: BTreeSet<_> =
        without.reached.iter().map(|(number, receiver)| (ends(*number), *receiver)).collect();
    let more: Vec<_> = with
        .reached
        .iter()
        .filter(|(number, receiver)| !before.contains(&(ends(*number), *receiver)))
        .map(|(number, receiver)| (known[number], *receiver))
        .filter(|((place, forgery), receiver)| {
            !forgery.is_known_open(lab, is_client)
                && !is_from_the_source_alias(*place, forgery, *receiver)
                && !is_healed(*place, forgery)
                && !is_answered_otherwise(forgery, *receiver)
        })
        .collect();
    assert!(more.is_empty(), "{} reached with wsl-mirror alone:\n{}", more.len(), lines(&more));
    let ends_and_nic =
        |(number, nic): &(u32, &'static str)| (known.contains_key(number).then(|| ends(*number)), *nic);
    let before: BTreeSet<_> = left_before.iter().map(ends_and_nic).collect();
    let left: Vec<_> = with
        .left
        .iter()
        .filter(|(number, nic)| {
            // An ICMP error with the alias as its source is the attacker's own, and follows an engine's entries.
            let is_icmp = known.get(number).is_some_and(|(_, forgery)| forgery.kind.is_icmp());
            ["loopback0", "winlo0"].contains(nic)
                || !(is_icmp || before.contains(&ends_and_nic(&(*number, nic))))
        })
        .map(|(number, nic)| (known.get(number), nic))
        .collect();
    assert!(left.is_empty(), "{} left with the alias: {}", left.len(), lines(&left));
    assert!(with.frames <= without.frames.max(forgeries.len()) * 3, "{} frames", with.frames);
    assert_eq!(with.ended, Vec::<String>::new(), "flows end that are carried");
}

#[track_caller]
fn assert_machine(machine: Machine, carried: Carried) {
    let network = Network::new(machine);
    let forgeries = forgeries();
    // Where docker-proxy shall answer, no flow to a published port lives without wsl-mirror.
    let live = FLOWS.iter().copied().filter(|(port, _)| machine.bridge_routes_localnet || *port != PUBLISHED);
    let live: Vec<_> = live.collect();
    let without = [&[][..], &live].map(|flows| attack(&network, &forgeries, flows));
    assert!(!without[1].reached.is_empty(), "the forgeries reach nobody at all: the test tests nothing");
    // What leaves also depends on the entries that flows have left, and without wsl-mirror one of them hangs.
    let left_before = &without[0].left | &without[1].left;
    network.load(carried);
    for (flows, without) in [&[][..], &FLOWS].into_iter().zip(&without) {
        let with = attack(&network, &forgeries, flows);
        println!(
            "{} forgeries, {} live flows: {} reached somebody ({} without), {} left with the alias ({} without), \
             {} frames ({} without)",
            forgeries.len(),
            flows.len(),
            with.reached.len(),
            without.reached.len(),
            with.left.len(),
            without.left.len(),
            with.frames,
            without.frames,
        );
        assert_no_more(&network.lab, &forgeries, without, &left_before, &with);
    }
}

#[test]
fn forgeries_reach_no_more_behind_a_forward_that_accepts() {
    assert_machine(Machine { bridge_routes_localnet: false, forward: "accept" }, Carried::Steered);
}

#[test]
fn forgeries_reach_no_more_behind_a_forward_that_drops() {
    assert_machine(Machine { bridge_routes_localnet: false, forward: "drop" }, Carried::Steered);
}

#[test]
fn forgeries_reach_no_more_where_the_bridge_routes_localnet() {
    assert_machine(Machine { bridge_routes_localnet: true, forward: "accept" }, Carried::Steered);
}

#[test]
fn forgeries_reach_no_more_where_bridge_and_policy_differ() {
    assert_machine(Machine { bridge_routes_localnet: true, forward: "drop" }, Carried::Steered);
}

#[test]
fn forgeries_reach_no_direct_flow_where_forward_accepts() {
    assert_machine(Machine { bridge_routes_localnet: false, forward: "accept" }, Carried::Direct);
}

#[test]
fn forgeries_reach_no_direct_flow_where_localnet_is_routed() {
    assert_machine(Machine { bridge_routes_localnet: true, forward: "drop" }, Carried::Direct);
}
