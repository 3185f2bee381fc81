//! Counters of one port.

/// Value of `PORT_STATS` (per-CPU hash): flows and packets towards one port. Replies are not counted by port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortStats {
    /// Steered flows: the program made their conntrack entry. `PORT_PACKETS` counts their packets.
    pub steered_flows: u64,
    /// Packets that passed untouched.
    pub passed_packets: u64,
    /// Packets that passed because one of our calls failed.
    pub failed_packets: u64,
}
