//! The guest as the programs see it, on the host: the same decisions over this model and over the kernel have
//! to come out the same.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Instant,
};

use wsl_mirror_core::{
    abi::{
        CarriedDatagram, DirectFlow, DirectFlowKey, FragmentKey, Path, Policy, PortKey, PortPackets,
        PortPolicy, Protocol, Reason, Target, Verdict,
    },
    egress::{self, Standing},
    fragments::{self, Datagrams},
    packet::{LOCALHOST, Packet, fragment, parse},
    verdict::{self, Conntrack, Entry, Kernel, Listener, TupleKind, decide, status},
};
use wsl_mirror_packets::Sample;

use crate::program::Border;

/// The interface of a target that leads nowhere: `lo`.
pub const UNREACHABLE: u32 = 1;

/// What `bpf_fib_lookup` forwards at most (`is_skb_forwardable`): the interface's MTU, and two headers. No wire brings more
/// in one piece, but `BPF_PROG_TEST_RUN` does.
const LONGEST_FORWARDED: usize = 1_500 + 14 + 4;

/// An address and a port.
pub type Endpoint = ([u8; 4], u16);

/// Addresses and ports of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tuple {
    protocol: Protocol,
    from: Endpoint,
    to: Endpoint,
}

impl Tuple {
    const fn turned_round(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

/// A flow in conntrack's table, by the tuple of its first direction.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// The tuple of its replies.
    reply: Tuple,
    status: u32,
    tcp_state: u8,
}

/// An entry that somebody else made.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The end that opened the flow.
    pub from: Endpoint,
    /// The other end.
    pub to: Endpoint,
    /// For TCP: conntrack's name and number of the state.
    pub state: Option<(&'static str, u8)>,
    /// Where a DNAT has it go.
    pub translated: Option<SocketAddrV4>,
    /// From which address an SNAT has it come, with the client's port.
    pub masqueraded: Option<Ipv4Addr>,
    /// Whether an answer came.
    pub answered: bool,
}

/// Sockets, policies and conntrack's table.
#[derive(Debug)]
pub struct Model {
    /// Ports with a listener that hears any client, and the policy of its owner.
    pub listeners: HashMap<(Protocol, u16), Policy>,
    /// UDP ports of those of them that hear any address of this machine.
    pub everywhere: HashSet<u16>,
    /// The containers behind the listeners.
    pub targets: HashMap<(Protocol, u16), Target>,
    /// Whether the kernel forwards to the containers and back.
    pub reachable: bool,
    /// A UDP socket that hears one client only: its address and port, and the server's port.
    pub connected: Option<([u8; 4], u16, u16)>,
    /// TCP connections from Windows: its port, and ours.
    pub connections: HashSet<(u16, u16)>,
    /// The policies of ports.
    pub policies: HashMap<PortKey, PortPolicy>,
    /// The global path.
    pub path: Path,
    /// The default policy.
    pub default: Policy,
    /// Whether flows can be carried.
    pub is_carrying: bool,
    /// The alias.
    pub alias: [u8; 4],
    /// The source alias.
    pub source_alias: [u8; 4],
    /// Packets of carried flows, by port.
    pub carried: HashMap<PortKey, PortPackets>,
    /// When the first one was, by the clock since `made`.
    fragments: HashMap<FragmentKey, CarriedDatagram>,
    /// The translations of direct TCP flows.
    direct_flows: HashMap<DirectFlowKey, DirectFlow>,
    /// The length of the frame that is judged.
    length: usize,
    made: Instant,
    flows: HashMap<Tuple, Flow>,
    /// The first direction of each flow by the tuple of its replies.
    replies: HashMap<Tuple, Tuple>,
}

impl Model {
    /// A guest without a socket, where everything is steered.
    pub fn new() -> Self {
        Self {
            listeners: HashMap::new(),
            everywhere: HashSet::new(),
            targets: HashMap::new(),
            reachable: true,
            connected: None,
            connections: HashSet::new(),
            policies: HashMap::new(),
            path: Path::Auto,
            default: Policy::Steer,
            is_carrying: true,
            alias: [0; 4],
            source_alias: [0; 4],
            carried: HashMap::new(),
            fragments: HashMap::new(),
            direct_flows: HashMap::new(),
            length: 0,
            made: Instant::now(),
            flows: HashMap::new(),
            replies: HashMap::new(),
        }
    }

    /// The reason that the program on ingress has to count for this frame.
    pub fn judge(&mut self, sample: &Sample) -> Reason {
        self.length = sample.len();
        match parse(&sample.frame()) {
            Ok(_) if !self.is_carrying => Reason::NotCarrying,
            Ok(packet) => {
                let reason = decide(&packet, self);
                fragments::first(&packet, reason, self);
                match reason.verdict() {
                    Verdict::Steer => self.carried.entry(port(&packet)).or_default().steered += 1,
                    Verdict::Direct => self.carried.entry(port(&packet)).or_default().direct += 1,
                    _ => {}
                }
                reason
            }
            Err(Reason::LaterFragment) if self.is_carrying => match fragment(&sample.frame()) {
                Some(datagram) => fragments::later(datagram, self),
                None => Reason::LaterFragment,
            },
            Err(reason) => reason,
        }
    }

    /// The reason that the program on egress has to count for this frame, if it acts upon it.
    pub fn judge_leaving(&self, frame: &Sample, border: Border) -> Option<Reason> {
        let outgoing = egress::parse(&frame.frame(), self.alias, self.source_alias)?;
        let bytes = frame.bytes();
        let transport = usize::from(outgoing.transport);
        let standing = match border {
            // `BPF_PROG_TEST_RUN` makes a packet that conntrack has not seen.
            Border::ByNote => Standing::Other,
            // Before Linux 6.2 nothing can be said of one without ports.
            Border::ByLookup if outgoing.is_later_fragment => Standing::Reply,
            Border::ByLookup => match bytes.get(transport..transport + 4) {
                Some(&[a, b, c, d]) => {
                    let client = ([bytes[30], bytes[31], bytes[32], bytes[33]], u16::from_be_bytes([c, d]));
                    let alias = (self.alias, u16::from_be_bytes([a, b]));
                    let carried = Tuple { protocol: outgoing.protocol, from: client, to: alias };
                    match self.find(carried) {
                        Some((_, entry)) if entry.carries(outgoing.kind) => Standing::Reply,
                        _ => Standing::Other,
                    }
                }
                _ => Standing::Other,
            },
        };
        let checksum_end = match outgoing.protocol {
            Protocol::Tcp => transport + 18,
            Protocol::Udp => transport + 8,
        };
        match egress::decide(standing, outgoing.kind) {
            Reason::Returned | Reason::DirectReturned
                if !outgoing.is_later_fragment && bytes.len() < checksum_end =>
            {
                Some(Reason::ReplyFailed)
            }
            reason => Some(reason),
        }
    }

    /// `conntrack -F`.
    pub fn flush_conntrack(&mut self) {
        self.flows.clear();
        self.replies.clear();
    }

    /// Somebody else makes an entry.
    pub fn insert_foreign(&mut self, foreign: Foreign) {
        let Foreign { protocol, from, to, .. } = foreign;
        let first = Tuple { protocol, from, to };
        let server = foreign.translated.map_or(to, |to| (to.ip().octets(), to.port()));
        let client = foreign.masqueraded.map_or(from, |address| (address.octets(), from.1));
        let bits = [
            (foreign.translated.is_some(), status::DST_NAT),
            (foreign.masqueraded.is_some(), status::SRC_NAT),
            (foreign.answered, status::SEEN_REPLY),
        ];
        let flow = Flow {
            reply: Tuple { protocol, from: server, to: client },
            status: bits.iter().filter(|(is_set, _)| *is_set).map(|(_, bit)| bit).sum(),
            tcp_state: foreign.state.map_or(0, |(_, number)| number),
        };
        assert!(self.insert(first, flow), "{foreign:?} meets another entry");
    }

    /// As conntrack does: no tuple twice in the table, in whichever direction.
    fn insert(&mut self, first: Tuple, flow: Flow) -> bool {
        let is_taken = |tuple| self.flows.contains_key(&tuple) || self.replies.contains_key(&tuple);
        if is_taken(first) || is_taken(flow.reply) {
            return false;
        }
        self.flows.insert(first, flow);
        self.replies.insert(flow.reply, first);
        true
    }

    /// The flow that a tuple belongs to, by its first direction, and what a lookup says about it.
    fn find(&self, tuple: Tuple) -> Option<(Tuple, Entry)> {
        // From a port to itself both directions look alike, and conntrack finds the reply's first.
        let (first, is_reply) = match self.replies.get(&tuple) {
            Some(first) => (*first, true),
            None => (tuple, false),
        };
        let Flow { status, tcp_state, reply } = *self.flows.get(&first)?;
        Some((
            first,
            Entry { is_reply, status, tcp_state, reply_source: reply.from.0, reply_port: reply.from.1 },
        ))
    }

    /// The packet's tuple of this kind.
    const fn tuple(&self, packet: &Packet, kind: TupleKind) -> Tuple {
        let (source, destination) = match kind {
            TupleKind::Own => (packet.client, LOCALHOST),
            TupleKind::Steered => (packet.client, self.alias),
            TupleKind::Direct => (self.source_alias, self.alias),
        };
        Tuple {
            protocol: packet.protocol,
            from: (source, packet.client_port),
            to: (destination, packet.server_port),
        }
    }

    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The program's records of fragments are dropped.
    pub fn forget_fragments(&mut self) {
        self.fragments.clear();
    }
}

impl Datagrams for Model {
    fn now(&mut self) -> u64 {
        self.nanoseconds()
    }

    fn record(&mut self, datagram: FragmentKey) -> Option<CarriedDatagram> {
        self.fragments.get(&datagram).copied()
    }

    fn remember(&mut self, datagram: FragmentKey, carried: CarriedDatagram) {
        self.fragments.insert(datagram, carried);
    }

    fn forget(&mut self, datagram: FragmentKey) {
        self.fragments.remove(&datagram);
    }
}

fn port(packet: &Packet) -> PortKey {
    PortKey::new(packet.protocol, packet.server_port)
}

const fn flow_key(packet: &Packet) -> DirectFlowKey {
    DirectFlowKey { client_port: packet.client_port, server_port: packet.server_port }
}

impl Kernel for Model {
    fn carried(&mut self, packet: &Packet) -> PortPackets {
        self.carried.get(&port(packet)).copied().unwrap_or_default()
    }

    fn conntrack(&mut self, packet: &Packet, kind: TupleKind) -> Conntrack {
        match self.find(self.tuple(packet, kind)) {
            Some((_, entry)) => Conntrack::Found(entry),
            None => Conntrack::Missing,
        }
    }

    fn port_policy(&mut self, packet: &Packet) -> PortPolicy {
        self.policies.get(&port(packet)).copied().unwrap_or_default()
    }

    fn default_policy(&mut self) -> Policy {
        self.default
    }

    fn global_path(&mut self) -> Path {
        self.path
    }

    fn listener(&mut self, packet: &Packet) -> Listener {
        let connected = packet.protocol == Protocol::Udp
            && self.connected == Some((packet.client, packet.client_port, packet.server_port));
        let key = (packet.protocol, packet.server_port);
        let listener = self.listeners.get(&key).copied();
        match listener.or(connected.then_some(Policy::Unset)) {
            Some(owner) => Listener::new(owner, self.targets.get(&key).copied()),
            None => Listener::NONE,
        }
    }

    fn has_connection(&mut self, packet: &Packet) -> bool {
        packet.client == LOCALHOST && self.connections.contains(&(packet.client_port, packet.server_port))
    }

    fn has_sender(&mut self, packet: &Packet) -> bool {
        let is_bound = self.listeners.contains_key(&(Protocol::Udp, packet.client_port));
        let hears = packet.client == LOCALHOST || self.everywhere.contains(&packet.client_port);
        // The one that is connected hears its client alone, which is this packet's server here.
        let connected = packet.client == LOCALHOST
            && self.connected == Some((LOCALHOST, packet.server_port, packet.client_port));
        is_bound && hears || connected
    }

    fn is_reachable(&mut self, _: &Packet, target: &Target) -> bool {
        self.reachable && target.ifindex != UNREACHABLE && self.length <= LONGEST_FORWARDED
    }

    fn now(&mut self) -> u64 {
        self.nanoseconds()
    }

    fn note_unanswered(&mut self, packet: &Packet) {
        let now = self.nanoseconds();
        if let Some(target) = self.targets.get_mut(&(packet.protocol, packet.server_port)) {
            target.unanswered_at = now;
        }
    }

    fn expire(&mut self, packet: &Packet, kind: TupleKind, target: verdict::End) -> Result<(), ()> {
        let Some((first, entry)) = self.find(self.tuple(packet, kind)) else { return Ok(()) };
        if !entry.is_expirable(packet.role, kind, target) {
            return Err(());
        }
        if let Some(flow) = self.flows.remove(&first) {
            self.replies.remove(&flow.reply);
        }
        Ok(())
    }

    fn create(&mut self, packet: &Packet, kind: TupleKind) -> Result<(), Reason> {
        let first = self.tuple(packet, kind);
        let reply = self.tuple(packet, TupleKind::Own).turned_round();
        // To where the packet of its own tuple goes anyway: nothing is translated.
        let status = if kind == TupleKind::Own { 0 } else { status::DST_NAT };
        // No frame gets past the hook: no answer, state NONE.
        let flow = Flow { reply, status, tcp_state: 0 };
        if self.insert(first, flow) { Ok(()) } else { Err(Reason::InsertFailed) }
    }

    fn create_direct(&mut self, packet: &Packet, flow: DirectFlow) -> Result<(), Reason> {
        let first = self.tuple(packet, TupleKind::Direct);
        // Each port of the model has a container's port of its own: the client's is free there.
        let port = if flow.source_port == 0 { packet.client_port } else { flow.source_port };
        let reply =
            Tuple { protocol: packet.protocol, from: (flow.address, flow.port), to: (flow.source, port) };
        let status = status::DST_NAT | status::SRC_NAT;
        if !self.insert(first, Flow { reply, status, tcp_state: 0 }) {
            return Err(Reason::InsertFailed);
        }
        if packet.protocol == Protocol::Tcp {
            self.direct_flows.insert(flow_key(packet), DirectFlow { source_port: port, ..flow });
        }
        Ok(())
    }

    fn recall(&mut self, packet: &Packet) -> Option<DirectFlow> {
        self.direct_flows.get(&flow_key(packet)).copied()
    }
}
