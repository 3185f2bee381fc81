//! tc ingress of `loopback0`: a packet from Windows, before the stack sees it.
//!
//! The program is the first on the hook. It returns `TCX_NEXT`, so that the next program on the hook still runs, but
//! for packets that it has `lo` deliver.

use core::mem;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use wsl_mirror_core::abi::{Carrier, FlowState, Policy, Protocol, Reason, Settings, Verdict};
use wsl_mirror_core::fragments;
use wsl_mirror_core::packet::{self, MAX_HEADERS, Packet, Role};
use wsl_mirror_core::verdict::{Conntrack, Decision, Kernel, KnownFlow, Listener, Way, decide};

use crate::counters::{count, count_established, count_port, port_key};
use crate::maps::{FLOWS, PORT_POLICY, settings};
use crate::skb::Skb;
use crate::{conntrack, delivery, sockets};

/// `TCX_NEXT`; for `cls_bpf` `TC_ACT_UNSPEC`, which has the same value and meaning.
pub const NEXT: i32 = -1;

/// A packet came in on `loopback0`.
#[classifier]
pub fn wsl_mirror(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let parsed = match packet::parse(&skb) {
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
    match parsed {
        Err(Reason::LaterFragment) => delivery::later_fragment(&mut skb),
        Err(reason) => {
            count(reason);
            NEXT
        }
        Ok(packet) => {
            let packet = opaque_packet(packet, &skb);
            steer(&mut skb, &packet)
        }
    }
}

/// The same packet, its enums hidden from the verifier: else the verifier follows all later code once for each way
/// through the parser.
#[inline(always)]
fn opaque_packet(packet: Packet, skb: &Skb) -> Packet {
    let known =
        packet.role as u64 | (packet.protocol as u64) << 8 | u64::from(packet.first_fragment.is_some()) << 16;
    let same = skb.opaque(known);
    Packet {
        // SAFETY: the same number as before.
        role: unsafe { mem::transmute::<u8, Role>(same as u8) },
        // SAFETY: as above.
        protocol: unsafe { mem::transmute::<u8, Protocol>((same >> 8) as u8) },
        first_fragment: if same >> 16 == 0 { None } else { packet.first_fragment },
        ..packet
    }
}

#[inline(always)]
fn steer(skb: &mut Skb, packet: &Packet) -> i32 {
    let Some(settings) = settings() else {
        count(Reason::NoSettings);
        return NEXT;
    };
    let decision = decide(packet, &mut Ingress { skb, settings });
    // Hidden from the verifier likewise.
    let same = skb.opaque(decision.reason as u64 | u64::from(decision.by_lo) << 31);
    let Some(reason) = Reason::from_number(same as u32 & 0xff) else { return NEXT };
    let decision = Decision { reason, by_lo: same >> 31 != 0 };
    if matches!(decision.reason.verdict(), Verdict::Steer) {
        skb.add_mark(settings.mark);
    }
    fragments::first(packet, decision, &mut Ingress { skb, settings });
    let (action, reason) = if decision.by_lo {
        delivery::deliver(skb, settings, decision.reason)
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

/// The kernel around one packet, for [`decide`] and [`fragments`].
pub struct Ingress<'a> {
    pub skb: &'a mut Skb,
    pub settings: &'a Settings,
}

impl Kernel for Ingress<'_> {
    #[inline(always)]
    fn conntrack(&mut self, packet: &Packet) -> Conntrack {
        conntrack::find(self.skb, packet)
    }

    #[inline(always)]
    fn known_flow(&mut self, packet: &Packet) -> KnownFlow {
        let Some(flow) = FLOWS.get_ptr(packet.flow()) else { return KnownFlow::NONE };
        // SAFETY: the element stays readable until the program ends (RCU). A concurrent writer may change it: an
        // aligned u32 is read in one piece, and no field depends on another.
        let flow = unsafe { &*flow };
        KnownFlow {
            carrier: Carrier::from_number(flow.carrier),
            by_lo: flow.by_lo == 1,
            sequence: flow.sequence,
        }
    }

    #[inline(always)]
    fn port_policy(&mut self, packet: &Packet) -> Policy {
        let Some(policy) = PORT_POLICY.get_ptr(port_key(packet)) else { return Policy::Unset };
        // SAFETY: as above; each field is one byte.
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
        delivery::way(self.settings, packet)
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
        if flow.by_lo == 1 {
            delivery::set_seen(packet);
        }
        FLOWS.insert(packet.flow(), flow, u64::from(BPF_ANY)).map_err(|_| ())
    }

    #[inline(always)]
    fn learn(&mut self, packet: &Packet) {
        sockets::learn(self.skb, packet);
    }

    #[inline(always)]
    fn opaque(&self, number: u64) -> u64 {
        self.skb.opaque(number)
    }

    #[inline(always)]
    fn forget(&mut self, packet: &Packet) {
        // Most flows have no record.
        let _ = FLOWS.remove(packet.flow());
    }
}
