//! The tc program, `wsl_mirror`, first on the ingress side of `loopback0`; and the hooks that tell it who serves a
//! socket ([`owners`]).
//!
//! It is the edge: it reads the packet, asks the kernel and acts, and leaves every decision to
//! [`wsl_mirror_core::verdict::decide`], and for fragments without ports to [`wsl_mirror_core::fragments`]. It returns
//! `TCX_NEXT`, so that whoever else is on the hook still runs, but for what it has `lo` deliver.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// rustc calls every feature gate of a stable toolchain's bootstrap build unstable; there is no stable way to
// write one BPF instruction by hand.
#![allow(unstable_features)]
#![expect(missing_docs, reason = "the classifier macro writes a public function that nobody can document")]

mod conntrack;
mod frame;
mod owners;
mod sockets;
mod tuple;

use core::arch::asm;
use core::mem;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_INGRESS};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use wsl_mirror_core::abi::{
    Carrier, FlowKey, FlowState, FragmentKey, LAYOUT, PORTS, Policy, PortDelivery, PortKey, PortPolicy,
    PortRule, PortStats, Protocol, Reason, Settings, Verdict, Verdicts,
};
use wsl_mirror_core::fragments::{self, Datagrams};
use wsl_mirror_core::packet::{self, MAX_HEADERS, Packet};
use wsl_mirror_core::verdict::{Conntrack, Decision, Kernel, Listener, Remembered, Way, decide};

use crate::frame::Skb;

/// `TCX_NEXT`; for cls_bpf `TC_ACT_UNSPEC`, which has the same value and meaning.
const NEXT: i32 = -1;

/// `BPF_F_NO_PREALLOC`: entries take memory only once they exist.
const NO_PREALLOC: usize = 1;
/// `BPF_F_MMAPABLE`, since Linux 5.5.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// Large enough for every port of both protocols: exempting `1-65535` cannot fill it.
#[btf_map]
static PORT_POLICY: HashMap<PortKey, PortPolicy, 131_072, NO_PREALLOC> = HashMap::new();

#[btf_map]
static VERDICTS: PerCpuArray<Verdicts, 1> = PerCpuArray::new();

#[btf_map]
static PORT_STATS: PerCpuHashMap<PortKey, PortStats, 131_072, NO_PREALLOC> = PerCpuHashMap::new();

/// Beside `PORT_STATS` because nearly every packet is counted here: an array's element is found in 2 ns, a hash
/// map's in 30 (measured, `cargo xtask bench --packets`). Mapped into memory by `status`, which would need as many
/// calls as there are ports otherwise.
#[btf_map]
static PORT_PACKETS: Array<u64, PORTS, MMAPABLE> = Array::new();

#[btf_map]
static FLOWS: LruHashMap<FlowKey, FlowState, 32_768> = LruHashMap::new();

/// Mapped into memory by the loader, which writes one field of an element while the program may write the other.
#[btf_map]
static PORT_DELIVERY: Array<PortDelivery, PORTS, MMAPABLE> = Array::new();

/// Datagrams whose fragments are delivered by `lo`, and when the first one was (`bpf_ktime_get_ns`).
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, u64, 4096> = LruHashMap::new();

/// The program.
#[classifier]
pub fn wsl_mirror(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let reason = match packet::parse(&skb) {
        // The headers may only be out of reach: pull them into the linear part and look again.
        Err(Reason::Truncated) if !skb.is_linear() => {
            if skb.pull(MAX_HEADERS).is_err() {
                Err(Reason::PullFailed)
            } else {
                packet::parse(&skb)
            }
        }
        parsed => parsed,
    };
    match reason {
        Err(Reason::LaterFragment) => later_fragment(&mut skb),
        Err(reason) => {
            count(reason);
            NEXT
        }
        Ok(packet) => {
            let packet = forget_how(packet, &skb);
            steer(&mut skb, &packet)
        }
    }
}

/// The same packet, of which the kernel's verifier does not know any more on which way through the parser it came to be
/// what it is: else it looks at everything that follows once for each of these ways.
#[inline(always)]
fn forget_how(packet: Packet, skb: &Skb) -> Packet {
    let known =
        packet.role as u64 | (packet.protocol as u64) << 8 | u64::from(packet.first_fragment.is_some()) << 16;
    let same = skb.unknown(known);
    Packet {
        // SAFETY: the same number as before.
        role: unsafe { mem::transmute::<u8, packet::Role>(same as u8) },
        // SAFETY: as above.
        protocol: unsafe { mem::transmute::<u8, Protocol>((same >> 8) as u8) },
        first_fragment: if same >> 16 == 0 { None } else { packet.first_fragment },
        ..packet
    }
}

#[inline(always)]
fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0).filter(|settings| settings.layout == LAYOUT)
}

#[inline(always)]
fn later_fragment(skb: &mut Skb) -> i32 {
    let (Some(settings), Some(datagram)) = (settings(), packet::fragment(skb)) else {
        count(Reason::LaterFragment);
        return NEXT;
    };
    let decision = fragments::later(datagram, &mut Here { skb, settings });
    if !decision.by_lo {
        count(decision.reason);
        return NEXT;
    }
    skb.add_mark(settings.mark);
    deliver(skb, settings, decision.reason).0
}

/// Has a packet go on as if it had been received on `lo`. Says what the program returns, and what it counts.
#[inline(always)]
fn deliver(skb: &Skb, settings: &Settings, reason: Reason) -> (i32, Reason) {
    // To `lo`'s own address, or it is somebody else's frame (eth_type_trans).
    let reason = if skb.clear_destination().is_ok() { reason } else { Reason::DeliverFailed };
    count(reason);
    if matches!(reason, Reason::DeliverFailed) {
        return (NEXT, reason);
    }
    // SAFETY: no pointers are handed over.
    (unsafe { bpf_redirect(settings.lo_ifindex, u64::from(BPF_F_INGRESS)) } as i32, reason)
}

#[inline(always)]
fn steer(skb: &mut Skb, packet: &Packet) -> i32 {
    let Some(settings) = settings() else {
        count(Reason::NoSettings);
        return NEXT;
    };
    let decision = decide(packet, &mut Here { skb, settings });
    let same = skb.unknown(decision.reason as u64 | u64::from(decision.by_lo) << 31);
    let Some(reason) = Reason::from_number(same as u32 & 0xff) else { return NEXT };
    let decision = Decision { reason, by_lo: same >> 31 != 0 };
    if matches!(decision.reason.verdict(), Verdict::Steer) {
        skb.add_mark(settings.mark);
    }
    fragments::first(packet, decision, &mut Here { skb, settings });
    let (action, reason) = if decision.by_lo {
        deliver(skb, settings, decision.reason)
    } else {
        count(decision.reason);
        (NEXT, decision.reason)
    };
    match reason {
        Reason::Established => count_established(packet),
        Reason::Reply => {}
        _ => count_port(packet, reason),
    }
    if !matches!(reason, Reason::Established | Reason::Reply | Reason::NotOurs | Reason::EngineNat) {
        debug!(
            skb.context(),
            "{:i}:{} -> 127.0.0.1:{} protocol {}: reason {}",
            packet.client,
            packet.client_port,
            packet.server_port,
            packet.protocol as u8,
            reason as u32
        );
    }
    action
}

/// The packet's surroundings, for [`decide`] and [`fragments`].
struct Here<'a> {
    skb: &'a mut Skb,
    settings: &'a Settings,
}

impl Kernel for Here<'_> {
    #[inline(always)]
    fn conntrack(&mut self, packet: &Packet) -> Conntrack {
        conntrack::find(self.skb, packet)
    }

    #[inline(always)]
    fn remembered(&mut self, packet: &Packet) -> Remembered {
        let Some(flow) = FLOWS.get_ptr(packet.flow()) else { return Remembered::NOTHING };
        // SAFETY: the element stays readable until the program ends (RCU); a concurrent writer may change
        // it, and an aligned u32 is read whole. The fields need not be of one writing: each stands for itself.
        let flow = unsafe { &*flow };
        Remembered {
            carrier: Carrier::from_number(flow.carrier),
            by_lo: flow.by_lo == 1,
            sequence: flow.sequence,
        }
    }

    #[inline(always)]
    fn written_policy(&mut self, packet: &Packet) -> Policy {
        let Some(policy) = PORT_POLICY.get_ptr(port_key(packet)) else { return Policy::Unset };
        // SAFETY: as above; each field is one byte and stands for itself.
        unsafe { *policy }.effective()
    }

    #[inline(always)]
    fn default_policy(&mut self) -> Policy {
        Policy::from_byte(self.settings.default_policy as u8)
    }

    #[inline(always)]
    fn listener(&mut self, packet: &Packet) -> Option<Listener> {
        sockets::listener(self.skb, packet)
    }

    #[inline(always)]
    fn way(&mut self, packet: &Packet) -> Way {
        if self.settings.lo_ifindex == 0 {
            return Way::Plain;
        }
        let Some(port) = PORT_DELIVERY.get(port_key(packet).index()) else { return Way::Plain };
        match (PortRule::from_number(port.rule), port.seen) {
            (Some(PortRule::NotOnLo), _) => Way::ByLo,
            (Some(PortRule::Closed), _) => Way::Plain,
            (None, 1) => Way::Seen,
            (None, _) => Way::Open,
        }
    }

    #[inline(always)]
    fn has_connection(&mut self, packet: &Packet) -> bool {
        sockets::has_connection(self.skb, packet)
    }

    #[inline(always)]
    fn expire(&mut self, packet: &Packet) -> Result<(), ()> {
        conntrack::expire(self.skb, packet)
    }

    #[inline(always)]
    fn create(&mut self, packet: &Packet) -> Result<(), Reason> {
        conntrack::create(self.skb, packet)
    }

    #[inline(always)]
    fn remember(&mut self, packet: &Packet, flow: FlowState) -> Result<(), ()> {
        if flow.by_lo == 1
            && let Some(port) = PORT_DELIVERY.get_ptr_mut(port_key(packet).index())
        {
            // SAFETY: an aligned u32 that lives as long as the map; only ever set to this.
            unsafe { (*port).seen = 1 };
        }
        FLOWS.insert(packet.flow(), flow, u64::from(BPF_ANY)).map_err(|_| ())
    }

    #[inline(always)]
    fn learn(&mut self, packet: &Packet) {
        sockets::learn(self.skb, packet);
    }

    #[inline(always)]
    fn same(&self, number: u64) -> u64 {
        self.skb.unknown(number)
    }

    #[inline(always)]
    fn forget(&mut self, packet: &Packet) {
        // That there is nothing to be forgotten is the usual case.
        let _ = FLOWS.remove(packet.flow());
    }
}

impl Datagrams for Here<'_> {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        // SAFETY: no pointers are handed over.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn first_was(&mut self, datagram: FragmentKey) -> Option<u64> {
        if self.settings.lo_ifindex == 0 {
            return None;
        }
        // SAFETY: the element stays readable until the program ends (RCU), and an aligned u64 is read whole.
        FRAGMENTS.get_ptr(datagram).map(|then| unsafe { *then })
    }

    #[inline(always)]
    fn remember(&mut self, datagram: FragmentKey, now: u64) {
        // No room: then the others take the plain way, and the datagram is judged by where the last one came in.
        let _ = FRAGMENTS.insert(datagram, now, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn forget(&mut self, datagram: FragmentKey) {
        if self.settings.lo_ifindex != 0 {
            let _ = FRAGMENTS.remove(datagram);
        }
    }
}

#[inline(always)]
fn port_key(packet: &Packet) -> PortKey {
    PortKey::new(packet.protocol, packet.server_port)
}

#[inline(always)]
fn count(reason: Reason) {
    let Some(verdicts) = VERDICTS.get_ptr_mut(0) else { return };
    // SAFETY: `Verdicts` has one u64 for each reason, in the order of the reasons (tested in abi.rs), and
    // each CPU has its own. A tail of 30 comparisons is what `Verdicts::counter` would become here.
    unsafe {
        let counter = verdicts.cast::<u64>().add(reason as usize);
        *counter += 1;
    }
}

#[inline(always)]
fn count_established(packet: &Packet) {
    let Some(packets) = PORT_PACKETS.get_ptr_mut(port_key(packet).index()) else { return };
    // BPF's own atomic addition; core has none for a target without compare-and-swap.
    // SAFETY: an aligned u64 that lives as long as the map; all CPUs count in it.
    unsafe {
        asm!("lock *(u64 *)({packets} + 0) += {one}", packets = in(reg) packets, one = in(reg) 1_u64,
            options(nostack));
    }
}

#[inline(always)]
fn count_port(packet: &Packet, reason: Reason) {
    let key = port_key(packet);
    let Some(stats) = PORT_STATS.get_ptr_mut(&key) else {
        let mut first = PortStats::default();
        add(&mut first, reason);
        // No room: the port goes uncounted, nothing else depends on it.
        let _ = PORT_STATS.insert(&key, first, u64::from(BPF_ANY));
        return;
    };
    // SAFETY: each CPU has its own value.
    add(unsafe { &mut *stats }, reason);
}

#[inline(always)]
fn add(stats: &mut PortStats, reason: Reason) {
    match reason.verdict() {
        Verdict::Steer => stats.steered_flows += 1,
        Verdict::Pass => stats.passed_packets += 1,
        Verdict::Failed => stats.failed_packets += 1,
    }
}

/// The kernel lets only GPL-compatible programs call conntrack's kfuncs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
