//! The guest as the verdict sees it, on the host: the same decisions over this model and over the kernel have
//! to come out the same.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    time::Instant,
};

use wsl_mirror_core::{
    abi::{Carrier, FlowKey, FlowState, FragmentKey, Policy, PortKey, PortRule, Protocol, Reason},
    fragments::{self, Datagrams},
    packet::{Packet, fragment, parse},
    verdict::{Conntrack, Decision, Entry, Kernel, KnownFlow, Listener, Way, decide, status},
};
use wsl_mirror_packets::Sample;

/// Addresses and ports of a flow, from the one who opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tuple {
    protocol: Protocol,
    from: ([u8; 4], u16),
    to: ([u8; 4], u16),
}

impl Tuple {
    fn of(packet: &Packet) -> Self {
        Self {
            protocol: packet.protocol,
            from: (packet.client, packet.client_port),
            to: (Ipv4Addr::LOCALHOST.octets(), packet.server_port),
        }
    }

    fn turned_round(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

/// What stands in conntrack's table about a flow.
#[derive(Clone, Copy, Debug)]
struct Found {
    status: u64,
    tcp_state: u8,
    is_to_loopback: bool,
}

impl Found {
    /// As the program makes it. No frame gets past the hook, so it stays so: no answer, state NONE.
    const OURS: Self = Self { status: status::DST_NAT_DONE, tcp_state: 0, is_to_loopback: false };

    /// The replies of a flow that goes elsewhere come from elsewhere.
    fn is_translated(self) -> bool {
        self.status & status::DST_NAT != 0
    }
}

/// An entry that somebody else made, on loopback, from one port to another.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// From and to.
    pub ports: (u16, u16),
    /// For TCP: conntrack's name and number of the state.
    pub state: Option<(&'static str, u8)>,
    /// Where a DNAT has it go.
    pub translated: Option<&'static str>,
    /// Whether an answer came.
    pub answered: bool,
}

/// Sockets, policies, conntrack's table, and the flows that the program remembers.
#[derive(Debug)]
pub struct Model {
    /// Ports that somebody listens on, for whoever asks, and what is written about who it is.
    pub listeners: HashMap<(Protocol, u16), Policy>,
    /// A UDP socket that hears one client only: its address and port, and the server's port.
    pub connected: Option<([u8; 4], u16, u16)>,
    /// TCP connections from Windows: its port, and ours.
    pub connections: HashSet<(u16, u16)>,
    /// What is written about ports.
    pub policies: HashMap<PortKey, Policy>,
    /// What is true of the others.
    pub default: Policy,
    /// Whether packets can be delivered by `lo`.
    pub lo: bool,
    /// What the rules say of ports.
    pub rules: HashMap<PortKey, PortRule>,
    /// Listeners that have learned it, and ports that have seen it.
    by_lo: HashSet<PortKey>,
    seen: HashSet<PortKey>,
    /// When the first one was, by the clock since `made`.
    fragments: HashMap<FragmentKey, u64>,
    made: Instant,
    entries: HashMap<Tuple, Found>,
    flows: HashMap<FlowKey, FlowState>,
}

impl Model {
    /// A guest without a socket, where everything is steered.
    pub fn new() -> Self {
        Self {
            listeners: HashMap::new(),
            connected: None,
            connections: HashSet::new(),
            policies: HashMap::new(),
            default: Policy::Steer,
            lo: false,
            rules: HashMap::new(),
            by_lo: HashSet::new(),
            seen: HashSet::new(),
            fragments: HashMap::new(),
            made: Instant::now(),
            entries: HashMap::new(),
            flows: HashMap::new(),
        }
    }

    /// The reason that the program has to count for this frame.
    pub fn judge(&mut self, sample: &Sample) -> Decision {
        match parse(&sample.frame()) {
            Ok(packet) => {
                let decision = decide(&packet, self);
                fragments::first(&packet, decision, self);
                decision
            }
            Err(Reason::LaterFragment) => match fragment(&sample.frame()) {
                Some(datagram) => fragments::later(datagram, self),
                None => Decision::plain(Reason::LaterFragment),
            },
            Err(reason) => Decision::plain(reason),
        }
    }

    /// `conntrack -F`.
    pub fn flush_conntrack(&mut self) {
        self.entries.clear();
    }

    /// Somebody else makes an entry.
    pub fn insert(&mut self, foreign: Foreign) {
        let here = Ipv4Addr::LOCALHOST.octets();
        let tuple =
            Tuple { protocol: foreign.protocol, from: (here, foreign.ports.0), to: (here, foreign.ports.1) };
        let done = status::SRC_NAT_DONE | status::DST_NAT_DONE;
        let translated = if foreign.translated.is_some() { status::DST_NAT | done } else { 0 };
        let answered = if foreign.answered { status::SEEN_REPLY } else { 0 };
        let tcp_state = foreign.state.map_or(0, |(_, number)| number);
        let is_to_loopback = foreign.translated.is_some_and(|to| to.starts_with("127."));
        self.entries.insert(tuple, Found { status: translated | answered, tcp_state, is_to_loopback });
    }

    /// Which entry matches the packet, and whether as a reply.
    fn find(&self, packet: &Packet) -> Option<(Tuple, bool, Found)> {
        let tuple = Tuple::of(packet);
        if let Some(found) = self.entries.get(&tuple) {
            // From a port to itself: both directions look alike, and conntrack finds the reply's first.
            return Some((tuple, tuple == tuple.turned_round(), *found));
        }
        let opened = tuple.turned_round();
        let found = self.entries.get(&opened).filter(|found| !found.is_translated())?;
        Some((opened, true, *found))
    }

    /// The program's map is emptied.
    pub fn forget_flows(&mut self) {
        self.flows.clear();
    }

    /// The same of the one of fragments.
    pub fn forget_fragments(&mut self) {
        self.fragments.clear();
    }
}

impl Datagrams for Model {
    fn now(&mut self) -> u64 {
        u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn first_delivered_at(&mut self, datagram: FragmentKey) -> Option<u64> {
        self.fragments.get(&datagram).copied()
    }

    fn remember(&mut self, datagram: FragmentKey, now: u64) {
        if self.lo {
            self.fragments.insert(datagram, now);
        }
    }

    fn forget(&mut self, datagram: FragmentKey) {
        self.fragments.remove(&datagram);
    }
}

fn port(packet: &Packet) -> PortKey {
    PortKey::new(packet.protocol, packet.server_port)
}

impl Kernel for Model {
    fn conntrack(&mut self, packet: &Packet) -> Conntrack {
        match self.find(packet) {
            Some((_, is_reply, Found { status, tcp_state, is_to_loopback })) => {
                Conntrack::Found(Entry { is_reply, status, tcp_state, is_to_loopback })
            }
            None => Conntrack::Missing,
        }
    }

    fn known_flow(&mut self, packet: &Packet) -> KnownFlow {
        self.flows.get(&packet.flow()).map_or(KnownFlow::NONE, |flow| KnownFlow {
            carrier: Carrier::from_number(flow.carrier),
            by_lo: flow.by_lo == 1,
            sequence: flow.sequence,
        })
    }

    fn port_policy(&mut self, packet: &Packet) -> Policy {
        self.policies.get(&port(packet)).copied().unwrap_or(Policy::Unset)
    }

    fn default_policy(&mut self) -> Policy {
        self.default
    }

    fn listener(&mut self, packet: &Packet) -> Option<Listener> {
        let connected = packet.protocol == Protocol::Udp
            && self.connected == Some((packet.client, packet.client_port, packet.server_port));
        let listener = self.listeners.get(&(packet.protocol, packet.server_port)).copied();
        let owner = listener.or(connected.then_some(Policy::Unset))?;
        Some(Listener { owner, by_lo: self.by_lo.contains(&port(packet)) })
    }

    fn way(&mut self, packet: &Packet) -> Way {
        match (self.lo, self.rules.get(&port(packet)), self.seen.contains(&port(packet))) {
            (false, ..) | (_, Some(PortRule::Closed), _) => Way::Plain,
            (_, Some(PortRule::NotOnLo), _) => Way::ByLo,
            (.., true) => Way::Seen,
            _ => Way::Open,
        }
    }

    fn has_connection(&mut self, packet: &Packet) -> bool {
        packet.client == Ipv4Addr::LOCALHOST.octets()
            && self.connections.contains(&(packet.client_port, packet.server_port))
    }

    fn expire(&mut self, packet: &Packet) -> Result<(), ()> {
        if let Some((tuple, ..)) = self.find(packet) {
            self.entries.remove(&tuple);
        }
        Ok(())
    }

    fn create(&mut self, packet: &Packet) -> Result<(), Reason> {
        self.entries.insert(Tuple::of(packet), Found::OURS);
        Ok(())
    }

    fn remember(&mut self, packet: &Packet, flow: FlowState) -> Result<(), ()> {
        if flow.by_lo == 1 {
            self.seen.insert(port(packet));
        }
        self.flows.insert(packet.flow(), flow);
        Ok(())
    }

    fn learn(&mut self, packet: &Packet) {
        self.by_lo.insert(port(packet));
    }

    fn forget(&mut self, packet: &Packet) {
        self.flows.remove(&packet.flow());
    }
}
