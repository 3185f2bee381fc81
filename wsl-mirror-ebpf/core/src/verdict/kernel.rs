//! The kernel as the verdict sees it.

use super::entry::{Conntrack, End, TupleKind};
use super::listener::Listener;
use crate::abi::{DirectFlow, Path, Policy, PortPackets, PortPolicy, Reason, Target};
use crate::packet::Packet;

/// What the program asks of the kernel and does to it. Each call may fail; none may hold anything on return.
#[expect(clippy::result_unit_err, reason = "of a call that failed, the verdict needs to know only that")]
pub trait Kernel {
    /// How many packets of carried flows to the packet's destination port were counted.
    fn carried(&mut self, packet: &Packet) -> PortPackets;
    /// Finds the conntrack entry of this tuple of the packet.
    fn conntrack(&mut self, packet: &Packet, kind: TupleKind) -> Conntrack;
    /// What the user wrote about the packet's destination port.
    fn port_policy(&mut self, packet: &Packet) -> PortPolicy;
    /// The policy of ports that neither the user's nor an owner's policy covers.
    fn default_policy(&mut self) -> Policy;
    /// The path of ports that have none of their own.
    fn global_path(&mut self) -> Path;
    /// The socket that would receive a flow that this packet begins: for TCP one in LISTEN, for UDP a bound one.
    fn listener(&mut self, packet: &Packet) -> Listener;
    /// Whether a TCP socket with exactly this packet's addresses and ports exists.
    fn has_connection(&mut self, packet: &Packet) -> bool;
    /// Whether a UDP socket of this machine sends from the packet's source: the packet is then Linux' own.
    fn has_sender(&mut self, packet: &Packet) -> bool;
    /// Whether the kernel forwards a direct flow to this target and its replies back to the interface.
    fn is_reachable(&mut self, packet: &Packet, target: &Target) -> bool;
    /// The time in ns of `CLOCK_MONOTONIC`.
    fn now(&mut self) -> u64;
    /// Notes on the packet's listener that a direct flow to its target was found unanswered.
    fn note_unanswered(&mut self, packet: &Packet);
    /// Expires the entry of this tuple if the packet still may ([`super::Entry::is_expirable`]).
    fn expire(&mut self, packet: &Packet, kind: TupleKind, target: End) -> Result<(), ()>;
    /// Makes an entry of the packet's own or a steered flow's tuple, whose destination NAT is already done, to 127.0.0.1 and
    /// the packet's port.
    fn create(&mut self, packet: &Packet, kind: TupleKind) -> Result<(), Reason>;
    /// Makes the entry of a direct flow, whose destination and source NAT are already done.
    fn create_direct(&mut self, packet: &Packet, flow: DirectFlow) -> Result<(), Reason>;
    /// The translation of the direct TCP flow to which the packet belonged before conntrack lost its entry.
    fn recall(&mut self, packet: &Packet) -> Option<DirectFlow>;
    /// The same number, hidden from the kernel's verifier: else the verifier follows all later code once for each
    /// value that it knows the number can have.
    fn opaque(&self, number: u64) -> u64 {
        number
    }
    /// The same packet, its role and protocol hidden likewise. Each step begins with that: else the verifier follows the step
    /// once for each way to it.
    fn hidden(&self, packet: &Packet) -> Packet {
        *packet
    }
    /// The same listener, hidden likewise.
    fn hidden_listener(&self, listener: &Listener) -> Listener {
        *listener
    }
}
