//! tc ingress of `loopback0`: a packet from Windows, before the stack sees it.
//!
//! The program is the first on the hook. It returns `TCX_NEXT`, so that the next program on the hook still runs.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use wsl_mirror_core::abi::{Carrying, Reason, Settings, Verdict};
use wsl_mirror_core::fragments;
use wsl_mirror_core::packet::{self, LOCALHOST, MAX_HEADERS, Packet};
use wsl_mirror_core::verdict::decide;

use crate::action::NEXT;
use crate::counters::{count, count_carried, count_port};
use crate::kernel::{Ingress, hide};
use crate::maps::settings;
use crate::rewrite::{self, Address, Checksum};
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
            let packet = hide(&skb, &packet);
            steer(&mut skb, &packet)
        }
    }
}

/// Decides about a fragment without ports.
#[inline(always)]
fn later_fragment(skb: &mut Skb) -> i32 {
    let (Some(settings), Some(datagram)) = (carrying(), packet::fragment(skb)) else {
        count(Reason::LaterFragment);
        return NEXT;
    };
    let mut reason = fragments::later(datagram, &mut Ingress { skb, settings });
    if reason.verdict().is_carried() {
        reason = carry(skb, settings, None, reason);
    }
    count(reason);
    NEXT
}

/// The settings, if flows can be carried on this machine.
#[inline(always)]
fn carrying() -> Option<&'static Settings> {
    settings().filter(|settings| matches!(Carrying::from_number(settings.carrying), Carrying::On))
}

/// Sends the packet to the alias, and a direct flow's from the source alias: the reason that it counts.
#[inline(always)]
fn carry(skb: &mut Skb, settings: &Settings, checksum: Option<Checksum>, reason: Reason) -> Reason {
    let mut written = rewrite::replace(skb, checksum, Address::Destination, LOCALHOST, settings.alias);
    if written.is_ok() && matches!(reason.verdict(), Verdict::Direct) {
        written = rewrite::replace(skb, checksum, Address::Source, LOCALHOST, settings.source_alias);
    }
    match written {
        Ok(()) => {
            skb.add_mark(settings.mark);
            reason
        }
        Err(_) => Reason::RewriteFailed,
    }
}

#[inline(always)]
fn steer(skb: &mut Skb, packet: &Packet) -> i32 {
    let Some(settings) = carrying() else {
        count(if settings().is_some() { Reason::NotCarrying } else { Reason::NoSettings });
        return NEXT;
    };
    let decided = decide(packet, &mut Ingress { skb, settings });
    // Hidden from the verifier likewise.
    let Some(mut reason) = Reason::from_number(skb.opaque(decided as u64) as u32) else { return NEXT };
    if reason.verdict().is_carried() {
        let checksum = Checksum::of(packet.protocol, packet.transport);
        reason = carry(skb, settings, Some(checksum), reason);
    }
    fragments::first(packet, reason, &mut Ingress { skb, settings });
    count(reason);
    if reason.verdict().is_carried() {
        count_carried(packet, reason.verdict());
    }
    match reason {
        Reason::Established | Reason::DirectEstablished | Reason::Reply | Reason::NeverCarried => {
            return NEXT;
        }
        _ => count_port(packet, reason),
    }
    if !matches!(reason, Reason::NotOurs | Reason::EngineNat) {
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
    NEXT
}
