//! The kernel as the verdict sees it.

use super::{Conntrack, KnownFlow, Listener, Way};
use crate::abi::{FlowState, Policy, Reason};
use crate::packet::Packet;

/// What the program asks of the kernel and does to it. Each call may fail; none may hold anything on return.
#[expect(clippy::result_unit_err, reason = "of a call that failed, the verdict needs to know only that")]
pub trait Kernel {
    /// Finds the packet's conntrack entry.
    fn conntrack(&mut self, packet: &Packet) -> Conntrack;
    /// Reads the record of the packet's flow.
    fn known_flow(&mut self, packet: &Packet) -> KnownFlow;
    /// The user's policy of the packet's destination port.
    fn port_policy(&mut self, packet: &Packet) -> Policy;
    /// The policy of ports that neither the user's nor an owner's policy covers.
    fn default_policy(&mut self) -> Policy;
    /// The socket that would receive a flow that this packet begins: for TCP one in LISTEN, for UDP a bound one.
    fn listener(&mut self, packet: &Packet) -> Option<Listener>;
    /// Whether a TCP socket with exactly this packet's addresses and ports exists.
    fn has_connection(&mut self, packet: &Packet) -> bool;
    /// Which ways there are to the packet's destination port.
    fn way(&mut self, packet: &Packet) -> Way;
    /// Removes the packet's conntrack entry if it still is of no use ([`super::Entry::replaceable`]).
    fn expire(&mut self, packet: &Packet) -> Result<(), ()>;
    /// Makes a conntrack entry for the flow whose destination NAT is already done, to where it goes anyway.
    fn create(&mut self, packet: &Packet) -> Result<(), Reason>;
    /// Records the packet's flow; for a flow that is delivered by `lo` also that its port has such flows.
    fn remember(&mut self, packet: &Packet, flow: FlowState) -> Result<(), ()>;
    /// Has the packet's listener remember that its flows are to be delivered by `lo`.
    fn learn(&mut self, packet: &Packet);
    /// Drops the record of the packet's flow.
    fn forget(&mut self, packet: &Packet);
    /// The same number, hidden from the kernel's verifier: else the verifier follows all later code once for each
    /// value that it knows the number can have.
    fn opaque(&self, number: u64) -> u64 {
        number
    }
}
