//! The guest as the programs see it, on the host: the same decisions over this model and over the kernel have
//! to come out the same.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddrV4,
    time::Instant,
};

use wsl_mirror_core::{
    abi::{FragmentKey, Policy, PortKey, Protocol, Reason, Verdict},
    egress::{self, Standing},
    fragments::{self, Datagrams},
    packet::{LOCALHOST, Packet, fragment, parse},
    verdict::{Conntrack, Destination, Entry, Kernel, Listener, decide, status},
};
use wsl_mirror_packets::Sample;

use crate::program::Border;

/// An address and a port.
pub type End = ([u8; 4], u16);

/// Addresses and ports of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tuple {
    protocol: Protocol,
    from: End,
    to: End,
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
    pub from: End,
    /// The other end.
    pub to: End,
    /// For TCP: conntrack's name and number of the state.
    pub state: Option<(&'static str, u8)>,
    /// Where a DNAT has it go.
    pub translated: Option<SocketAddrV4>,
    /// Whether an answer came.
    pub answered: bool,
}

/// Sockets, policies and conntrack's table.
#[derive(Debug)]
pub struct Model {
    /// Ports with a listener that hears any client, and the policy of its owner.
    pub listeners: HashMap<(Protocol, u16), Policy>,
    /// A UDP socket that hears one client only: its address and port, and the server's port.
    pub connected: Option<([u8; 4], u16, u16)>,
    /// TCP connections from Windows: its port, and ours.
    pub connections: HashSet<(u16, u16)>,
    /// The policies of ports.
    pub policies: HashMap<PortKey, Policy>,
    /// The default policy.
    pub default: Policy,
    /// Whether flows can be carried.
    pub is_carrying: bool,
    /// The alias.
    pub alias: [u8; 4],
    /// Packets of carried flows, by port.
    pub carried: HashMap<PortKey, u64>,
    /// When the first one was, by the clock since `made`.
    fragments: HashMap<FragmentKey, u64>,
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
            connected: None,
            connections: HashSet::new(),
            policies: HashMap::new(),
            default: Policy::Steer,
            is_carrying: true,
            alias: [0; 4],
            carried: HashMap::new(),
            fragments: HashMap::new(),
            made: Instant::now(),
            flows: HashMap::new(),
            replies: HashMap::new(),
        }
    }

    /// The reason that the program on ingress has to count for this frame.
    pub fn judge(&mut self, sample: &Sample) -> Reason {
        match parse(&sample.frame()) {
            Ok(_) if !self.is_carrying => Reason::NotCarrying,
            Ok(packet) => {
                let reason = decide(&packet, self);
                fragments::first(&packet, reason, self);
                if reason.verdict() == Verdict::Steer {
                    *self.carried.entry(port(&packet)).or_default() += 1;
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
        let outgoing = egress::parse(&frame.frame(), self.alias)?;
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
                        Some((_, entry)) if !entry.is_reply && entry.status & status::DST_NAT != 0 => {
                            Standing::Reply
                        }
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
        match egress::decide(standing) {
            Reason::Returned if !outgoing.is_later_fragment && bytes.len() < checksum_end => {
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
        let translated = if foreign.translated.is_some() { status::DST_NAT } else { 0 };
        // The program takes an entry that leads to a program on this machine for answered.
        let leads_here = foreign.translated.is_some_and(|to| to.ip().is_loopback());
        let answered = if foreign.answered || leads_here { status::SEEN_REPLY } else { 0 };
        let flow = Flow {
            reply: Tuple { protocol, from: server, to: from },
            status: translated | answered,
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
        let Flow { status, tcp_state, .. } = *self.flows.get(&first)?;
        Some((first, Entry { is_reply, status, tcp_state }))
    }

    /// The packet's tuple with this destination.
    const fn tuple(&self, packet: &Packet, destination: Destination) -> Tuple {
        let address = match destination {
            Destination::Own => LOCALHOST,
            Destination::Alias => self.alias,
        };
        Tuple {
            protocol: packet.protocol,
            from: (packet.client, packet.client_port),
            to: (address, packet.server_port),
        }
    }

    /// The program's records of fragments are dropped.
    pub fn forget_fragments(&mut self) {
        self.fragments.clear();
    }
}

impl Datagrams for Model {
    fn now(&mut self) -> u64 {
        u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn first_carried_at(&mut self, datagram: FragmentKey) -> Option<u64> {
        self.fragments.get(&datagram).copied()
    }

    fn remember(&mut self, datagram: FragmentKey, now: u64) {
        self.fragments.insert(datagram, now);
    }

    fn forget(&mut self, datagram: FragmentKey) {
        self.fragments.remove(&datagram);
    }
}

fn port(packet: &Packet) -> PortKey {
    PortKey::new(packet.protocol, packet.server_port)
}

impl Kernel for Model {
    fn was_carried(&mut self, packet: &Packet) -> bool {
        self.carried.contains_key(&port(packet))
    }

    fn conntrack(&mut self, packet: &Packet, destination: Destination) -> Conntrack {
        match self.find(self.tuple(packet, destination)) {
            Some((_, entry)) => Conntrack::Found(entry),
            None => Conntrack::Missing,
        }
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
        Some(Listener { owner })
    }

    fn has_connection(&mut self, packet: &Packet) -> bool {
        packet.client == LOCALHOST && self.connections.contains(&(packet.client_port, packet.server_port))
    }

    fn expire(&mut self, packet: &Packet, destination: Destination) -> Result<(), ()> {
        let Some((first, entry)) = self.find(self.tuple(packet, destination)) else { return Ok(()) };
        if !entry.is_expirable(packet.role, destination) {
            return Err(());
        }
        if let Some(flow) = self.flows.remove(&first) {
            self.replies.remove(&flow.reply);
        }
        Ok(())
    }

    fn create(&mut self, packet: &Packet, destination: Destination) -> Result<(), Reason> {
        let first = self.tuple(packet, destination);
        let reply = self.tuple(packet, Destination::Own).turned_round();
        let status = match destination {
            // To where the packet goes anyway: nothing is translated.
            Destination::Own => 0,
            Destination::Alias => status::DST_NAT,
        };
        // No frame gets past the hook: no answer, state NONE.
        let flow = Flow { reply, status, tcp_state: 0 };
        if self.insert(first, flow) { Ok(()) } else { Err(Reason::InsertFailed) }
    }
}
