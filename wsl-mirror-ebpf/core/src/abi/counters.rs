//! Counters of one port: flows and packets towards it.

/// Value of `PORT_STATS` (per-CPU hash): flows and packets towards one port. Replies are not counted by port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortStats {
    /// Steered flows: the program made their conntrack entry. `PORT_PACKETS` counts their packets.
    pub steered_flows: u64,
    /// Direct flows, likewise.
    pub direct_flows: u64,
    /// Packets that passed untouched.
    pub passed_packets: u64,
    /// Packets that passed because one of our calls failed.
    pub failed_packets: u64,
}

/// Element of `PORT_PACKETS` (array, by [`PortKey::index`](super::PortKey::index)): packets of carried flows to one port.
///
/// 0 says that no flow was ever carried that way: the port's packets need no conntrack lookup for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortPackets {
    /// Packets of steered flows.
    pub steered: u64,
    /// Packets of direct flows.
    pub direct: u64,
}
