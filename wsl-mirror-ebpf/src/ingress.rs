//! tc ingress of `loopback0`: a packet from Windows, before the stack sees it.
//!
//! The program is the first on the hook. It returns `TCX_NEXT`, so that the next program on the hook still runs, but
//! for packets that it has `lo` deliver.

use core::mem;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use wsl_mirror_core::abi::{Protocol, Reason, Verdict};
use wsl_mirror_core::fragments;
use wsl_mirror_core::packet::{self, MAX_HEADERS, Packet, Role};
use wsl_mirror_core::verdict::{Decision, decide};

use crate::action::NEXT;
use crate::counters::{count, count_established, count_port};
use crate::delivery;
use crate::kernel::Ingress;
use crate::maps::settings;
use crate::skb::Skb;

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
        Err(Reason::LaterFragment) => later_fragment(&mut skb),
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

/// Decides about a fragment without ports.
#[inline(always)]
fn later_fragment(skb: &mut Skb) -> i32 {
    let (Some(settings), Some(datagram)) = (settings(), packet::fragment(skb)) else {
        count(Reason::LaterFragment);
        return NEXT;
    };
    let decision = fragments::later(datagram, &mut Ingress { skb, settings });
    if !decision.by_lo {
        count(decision.reason);
        return NEXT;
    }
    skb.add_mark(settings.mark);
    delivery::deliver(skb, settings, decision.reason).0
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
