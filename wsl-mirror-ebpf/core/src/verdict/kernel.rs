//! The kernel as the verdict sees it.

use super::{Conntrack, Destination, Listener};
use crate::abi::{Policy, Reason};
use crate::packet::Packet;

/// What the program asks of the kernel and does to it. Each call may fail; none may hold anything on return.
#[expect(clippy::result_unit_err, reason = "of a call that failed, the verdict needs to know only that")]
pub trait Kernel {
    /// Whether a flow to the packet's destination port was ever carried.
    fn was_carried(&mut self, packet: &Packet) -> bool;
    /// Finds the conntrack entry of the packet's tuple with this destination.
    fn conntrack(&mut self, packet: &Packet, destination: Destination) -> Conntrack;
    /// The user's policy of the packet's destination port.
    fn port_policy(&mut self, packet: &Packet) -> Policy;
    /// The policy of ports that neither the user's nor an owner's policy covers.
    fn default_policy(&mut self) -> Policy;
    /// The socket that would receive a flow that this packet begins: for TCP one in LISTEN, for UDP a bound one.
    fn listener(&mut self, packet: &Packet) -> Option<Listener>;
    /// Whether a TCP socket with exactly this packet's addresses and ports exists.
    fn has_connection(&mut self, packet: &Packet) -> bool;
    /// Expires the entry of this tuple if the packet still may ([`super::Entry::is_expirable`]).
    fn expire(&mut self, packet: &Packet, destination: Destination) -> Result<(), ()>;
    /// Makes an entry of this tuple whose destination NAT is already done, to 127.0.0.1 and the packet's port.
    fn create(&mut self, packet: &Packet, destination: Destination) -> Result<(), Reason>;
    /// The same number, hidden from the kernel's verifier: else the verifier follows all later code once for each
    /// value that it knows the number can have.
    fn opaque(&self, number: u64) -> u64 {
        number
    }
}
