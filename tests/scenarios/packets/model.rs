//! The guest as the verdict sees it, on the host: the same decisions over this model and over the kernel have
//! to come out the same.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
};

use wsl_mirror_ebpf::{
    abi::{Carrier, FlowKey, Policy, PortKey, Protocol, Reason},
    packet::{Packet, parse},
    verdict::{Conntrack, Entry, Kernel, decide, status},
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

/// Sockets, policies, conntrack's table, and the flows that the program remembers.
#[derive(Debug)]
pub struct Model {
    /// Ports that somebody listens on, for whoever asks.
    pub listeners: HashSet<(Protocol, u16)>,
    /// A UDP socket that hears one client only: its address and port, and the server's port.
    pub connected: Option<([u8; 4], u16, u16)>,
    /// What is written about ports.
    pub policies: HashMap<PortKey, Policy>,
    /// What is true of the others.
    pub default: Policy,
    entries: HashSet<Tuple>,
    flows: HashMap<FlowKey, Carrier>,
}

impl Model {
    /// A guest without a socket, where everything is steered.
    pub fn new() -> Self {
        Self {
            listeners: HashSet::new(),
            connected: None,
            policies: HashMap::new(),
            default: Policy::Steer,
            entries: HashSet::new(),
            flows: HashMap::new(),
        }
    }

    /// The reason that the program has to count for this frame.
    pub fn judge(&mut self, sample: &Sample) -> Reason {
        match parse(&sample.frame()) {
            Ok(packet) => decide(&packet, self),
            Err(reason) => reason,
        }
    }

    /// `conntrack -F`.
    pub fn flush_conntrack(&mut self) {
        self.entries.clear();
    }

    /// The program's map is emptied.
    pub fn forget_flows(&mut self) {
        self.flows.clear();
    }
}

impl Kernel for Model {
    fn conntrack(&mut self, packet: &Packet) -> Conntrack {
        let tuple = Tuple::of(packet);
        // No frame gets past the hook, so every entry is as the program made it: no answer, state NONE.
        let found =
            |is_reply| Conntrack::Found(Entry { is_reply, status: status::DST_NAT_DONE, tcp_state: 0 });
        match (self.entries.contains(&tuple), self.entries.contains(&tuple.turned_round())) {
            // From a port to itself: both directions look alike, and conntrack finds the reply's first.
            (true, _) => found(tuple == tuple.turned_round()),
            (false, true) => found(true),
            (false, false) => Conntrack::Missing,
        }
    }

    fn remembered(&mut self, packet: &Packet) -> Option<Carrier> {
        self.flows.get(&packet.flow()).copied()
    }

    fn written_policy(&mut self, packet: &Packet) -> Policy {
        let key = PortKey::new(packet.protocol, packet.server_port);
        self.policies.get(&key).copied().unwrap_or(Policy::Unset)
    }

    fn default_policy(&mut self) -> Policy {
        self.default
    }

    fn has_listener(&mut self, packet: &Packet) -> bool {
        self.listeners.contains(&(packet.protocol, packet.server_port))
            || (packet.protocol == Protocol::Udp
                && self.connected == Some((packet.client, packet.client_port, packet.server_port)))
    }

    fn has_connection(&mut self, _: &Packet) -> bool {
        false
    }

    fn expire(&mut self, packet: &Packet) -> Result<(), ()> {
        self.entries.remove(&Tuple::of(packet));
        Ok(())
    }

    fn create(&mut self, packet: &Packet) -> Result<(), Reason> {
        self.entries.insert(Tuple::of(packet));
        Ok(())
    }

    fn remember(&mut self, packet: &Packet, carrier: Carrier) -> Result<(), ()> {
        self.flows.insert(packet.flow(), carrier);
        Ok(())
    }

    fn forget(&mut self, packet: &Packet) {
        self.flows.remove(&packet.flow());
    }
}
