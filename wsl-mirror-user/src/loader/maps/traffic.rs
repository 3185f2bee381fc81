//! Counters, summed over the CPUs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use wsl_mirror_core::abi::{ClientOutcome, PORTS, PortKey, PortPackets, Reason, Verdicts};

use super::definitions::{CLIENTS, PORT_PACKETS, PORT_STATS, VERDICTS};
use super::mapped::Mapped;

/// Packets by reason.
pub fn verdicts() -> Result<Verdicts> {
    let values = VERDICTS.pinned()?.get()?;
    let mut sum = Verdicts::default();
    for value in values.iter() {
        for reason in Reason::ALL {
            *sum.counter(*reason) += value.get(*reason);
        }
    }
    Ok(sum)
}

/// Connects and unconnected datagrams of Linux' own clients by outcome.
pub fn clients() -> Result<BTreeMap<ClientOutcome, u64>> {
    let values = CLIENTS.pinned()?.get()?;
    let sum = |outcome| values.iter().map(|counts| counts.get(outcome)).sum();
    Ok(ClientOutcome::ALL.iter().map(|outcome| (*outcome, sum(*outcome))).collect())
}

/// What happened on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTraffic {
    /// Flows that were steered.
    pub steered_flows: u64,
    /// Their packets.
    pub steered_packets: u64,
    /// Flows that went straight to the container.
    pub direct_flows: u64,
    /// Their packets.
    pub direct_packets: u64,
    /// Packets that passed untouched.
    pub passed_packets: u64,
    /// Packets that passed because one of our calls failed.
    pub failed_packets: u64,
}

/// Every port on which something happened.
pub fn port_traffic() -> Result<BTreeMap<PortKey, PortTraffic>> {
    let mut ports: BTreeMap<PortKey, PortTraffic> = BTreeMap::new();
    for entry in PORT_STATS.pinned()?.iter() {
        let (key, values) = entry?;
        let port = ports.entry(key).or_default();
        for value in values.iter() {
            port.steered_flows += value.steered_flows;
            port.direct_flows += value.direct_flows;
            port.passed_packets += value.passed_packets;
            port.failed_packets += value.failed_packets;
        }
    }
    // All of them: a flow that was carried before the last unload goes on, and began in no map that is left.
    for (index, packets) in (0..).zip(PORT_PACKETS.pinned()?.counters()) {
        if packets != PortPackets::default() {
            let port = ports.entry(PortKey::at_index(index)).or_default();
            port.steered_packets += packets.steered;
            port.direct_packets += packets.direct;
        }
    }
    Ok(ports)
}

impl Mapped<PortPackets> {
    /// Every counter, in order.
    fn counters(&self) -> Vec<PortPackets> {
        let load = |index| {
            // SAFETY: two aligned u64 that live as long as the mapping; programs add to them, and nobody else writes.
            let [steered, direct] = unsafe { &*self.element(index).as_ptr().cast::<[AtomicU64; 2]>() };
            PortPackets { steered: steered.load(Ordering::Relaxed), direct: direct.load(Ordering::Relaxed) }
        };
        (0..PORTS).map(load).collect()
    }
}
