//! Counters: packets by reason, and flows and packets by port.

use aya_ebpf::bindings::BPF_ANY;
use wsl_mirror_core::abi::{ClientOutcome, PortKey, PortPackets, PortStats, Reason, Verdict};
use wsl_mirror_core::packet::Packet;

use crate::instructions;
use crate::maps::{CLIENTS, PORT_PACKETS, PORT_STATS, VERDICTS};

/// The packet's destination port.
#[inline(always)]
pub fn port_key(packet: &Packet) -> PortKey {
    PortKey::new(packet.protocol, packet.server_port)
}

/// Counts a packet in `VERDICTS`.
#[inline(always)]
pub fn count(reason: Reason) {
    let Some(verdicts) = VERDICTS.get_ptr_mut(0) else { return };
    // SAFETY: `Verdicts` has one u64 for each reason, in the order of the reasons (tested in abi/reason.rs).
    unsafe { increment(verdicts.cast(), reason as u64, Reason::ALL.len() as u64) };
}

/// Counts what a Linux client got in `CLIENTS`.
#[inline(always)]
pub fn count_client(outcome: ClientOutcome) {
    let Some(counts) = CLIENTS.get_ptr_mut(0) else { return };
    // SAFETY: `ClientCounts` has one u64 for each outcome, in their order (tested in abi/client.rs).
    unsafe { increment(counts.cast(), outcome as u64, ClientOutcome::ALL.len() as u64) };
}

/// Adds 1 to the counter of this number. `Verdicts::counter` would become a tail of 30 comparisons here.
///
/// Each CPU has its own counters. A process that is preempted here may lose a count.
///
/// # Safety
/// `counters` are as many as `length` says.
#[inline(always)]
unsafe fn increment(counters: *mut u64, number: u64, length: u64) {
    // The verifier wants to see the bound at this place, where the compiler knows it already.
    let number = instructions::forget(number);
    if number >= length {
        return;
    }
    // SAFETY: the caller's promise, and the bound.
    let counter = unsafe { counters.add(number as usize) };
    // SAFETY: as above.
    unsafe { *counter += 1 };
}

/// How many packets of carried flows to this port were counted.
#[inline(always)]
pub fn carried(packet: &Packet) -> PortPackets {
    let Some(packets) = PORT_PACKETS.get_ptr(port_key(packet).index()) else { return PortPackets::default() };
    // SAFETY: two aligned u64 that live as long as the map, each read in one piece.
    unsafe { *packets }
}

/// Counts a packet of a carried flow in `PORT_PACKETS`.
#[inline(always)]
pub fn count_carried(packet: &Packet, verdict: Verdict) {
    let Some(packets) = PORT_PACKETS.get_ptr_mut(port_key(packet).index()) else { return };
    let way = usize::from(matches!(verdict, Verdict::Direct));
    // SAFETY: `PortPackets` is two u64, of which the second counts direct packets.
    let counter = unsafe { packets.cast::<u64>().add(way) };
    // SAFETY: an aligned u64 that lives as long as the map; all CPUs count in it.
    unsafe { instructions::increment(counter) };
}

/// Counts a flow that begins, or a packet that passes, in `PORT_STATS`.
#[inline(always)]
pub fn count_port(packet: &Packet, reason: Reason) {
    let key = port_key(packet);
    let Some(stats) = PORT_STATS.get_ptr_mut(key) else {
        let mut first = PortStats::default();
        add(&mut first, reason);
        // Without room in the map the port has no counters, and nothing else depends on them.
        let _ = PORT_STATS.insert(key, first, u64::from(BPF_ANY));
        return;
    };
    // SAFETY: each CPU has its own value.
    add(unsafe { &mut *stats }, reason);
}

#[inline(always)]
const fn add(stats: &mut PortStats, reason: Reason) {
    match reason.verdict() {
        Verdict::Steer => stats.steered_flows += 1,
        Verdict::Direct => stats.direct_flows += 1,
        Verdict::Pass | Verdict::Drop => stats.passed_packets += 1,
        Verdict::Failed => stats.failed_packets += 1,
    }
}
