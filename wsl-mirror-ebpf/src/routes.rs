//! Routes: whether the kernel forwards direct flows, asked of the kernel for each flow that begins.

use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_fib_lookup};
use wsl_mirror_core::abi::{Protocol, Target};
use wsl_mirror_core::packet::Packet;

use crate::skb::Skb;

/// `AF_INET`.
const IPV4: u8 = 2;
/// `BPF_FIB_LKUP_RET_SUCCESS`.
const FOUND: i64 = 0;
/// `BPF_FIB_LKUP_RET_BLACKHOLE`.
const BLACKHOLE: i64 = 1;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: the route was found, and the neighbour is not resolved yet.
const NO_NEIGHBOUR: i64 = 7;

/// `struct bpf_fib_lookup`: the IPv4 parts of its unions.
#[repr(C)]
struct Lookup {
    family: u8,
    protocol: u8,
    /// Network order.
    source_port: u16,
    /// Network order.
    destination_port: u16,
    /// The length that has to fit; 0: not checked.
    length: u16,
    /// On entry the interface by which the packet comes in, on return that by which it leaves.
    ifindex: u32,
    tos: u32,
    source: [u8; 4],
    source_rest: [u32; 3],
    destination: [u8; 4],
    destination_rest: [u32; 3],
    rest: [u32; 4],
}

const SIZE: i32 = 64;
const _: () = assert!(size_of::<Lookup>() == SIZE as usize);

/// Where the kernel sends a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Sends {
    /// Nowhere that counts here.
    Elsewhere,
    /// Out on the interface that was asked about.
    There,
    /// Into a blackhole.
    Nowhere,
}

/// One direction of a direct flow. Ports in host order.
struct Leg {
    source: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    incoming: u32,
    outgoing: u32,
    length: u16,
}

/// Whether the kernel forwards a direct flow to this target and its replies back.
///
/// `bpf_fib_lookup` goes by the policy rules, as forwarding does, and refuses an interface without forwarding. So one lookup
/// each way finds a missing route, a missing rule, and forwarding that is off on `loopback0` or on the bridge.
///
/// A third one asks for the rule that keeps forged packets out: what comes by the bridge from the source alias has to go
/// into a blackhole. Without the rule any container gets into a live flow.
#[inline(always)]
pub fn is_reachable(skb: &Skb, packet: &Packet, target: &Target, source_alias: [u8; 4]) -> bool {
    let here = skb.ifindex();
    let client = (source_alias, packet.client_port);
    let container = (target.address, target.port);
    // The kernel tells nobody on the Windows side that a datagram is too long for the way (a router's ICMP error goes to the
    // source alias): the way must take every datagram that the interface takes.
    let length = match packet.protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => mtu(skb),
    };
    let there =
        Leg { source: client, destination: container, incoming: here, outgoing: target.ifindex, length };
    let back =
        Leg { source: container, destination: client, incoming: target.ifindex, outgoing: here, length: 0 };
    let forged = Leg { incoming: target.ifindex, length: 0, ..there };
    ask(skb, packet.protocol, &there) == Sends::There
        && ask(skb, packet.protocol, &back) == Sends::There
        && ask(skb, packet.protocol, &forged) == Sends::Nowhere
}

/// A function in the program too: it is called three times.
#[inline(never)]
fn ask(skb: &Skb, protocol: Protocol, leg: &Leg) -> Sends {
    let mut lookup = Lookup {
        family: IPV4,
        protocol: protocol as u8,
        source_port: leg.source.1.to_be(),
        destination_port: leg.destination.1.to_be(),
        length: leg.length,
        ifindex: leg.incoming,
        tos: 0,
        source: leg.source.0,
        source_rest: [0; 3],
        destination: leg.destination.0,
        destination_rest: [0; 3],
        rest: [0; 4],
    };
    let pointer = core::ptr::from_mut(&mut lookup);
    // SAFETY: the structure has the kernel's size and layout, and outlives the call.
    let found = unsafe { bpf_fib_lookup(skb.as_ptr(), pointer.cast(), SIZE, 0) };
    match found {
        FOUND | NO_NEIGHBOUR if lookup.ifindex == leg.outgoing => Sends::There,
        BLACKHOLE => Sends::Nowhere,
        _ => Sends::Elsewhere,
    }
}

/// The MTU of the packet's interface in bytes, or the largest that a lookup can ask for.
#[inline(always)]
fn mtu(skb: &Skb) -> u16 {
    let mut mtu = 0_u32;
    // SAFETY: the number outlives the call.
    unsafe { bpf_check_mtu(skb.as_ptr(), 0, &raw mut mtu, 0, 0) };
    if mtu > u32::from(u16::MAX) { u16::MAX } else { mtu as u16 }
}
