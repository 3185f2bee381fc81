//! tc egress of `loopback0`: a packet on its way to Windows, after the stack.
//!
//! The program is the last on the hook, so that the other programs see what leaves conntrack. It translates replies of
//! carried flows and drops everything else that comes from the alias.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use wsl_mirror_core::abi::{Reason, Settings};
use wsl_mirror_core::egress::{self, Outgoing, Standing};
use wsl_mirror_core::packet::LOCALHOST;
use wsl_mirror_core::verdict::TupleKind;

use crate::action::{DROP, NEXT};
use crate::conntrack;
use crate::counters::count;
use crate::maps::settings;
use crate::rewrite::{self, Address, Checksum};
use crate::skb::Skb;

/// The bytes that [`egress::parse`] reads.
const HEADERS: usize = 14 + 20;

/// A packet leaves by `loopback0`. Conntrack's word about it is in the packet.
#[classifier]
pub fn wsl_mirror_eg(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    leave(&skb, |skb, _, outgoing| conntrack::standing(skb, outgoing.kind))
}

/// The same before Linux 6.2, where no program reads `skb->_nfct`: a reply is what a carried flow's addresses fit.
#[classifier]
pub fn wsl_mirror_egl(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    leave(&skb, conntrack::standing_by_lookup)
}

#[inline(always)]
fn leave(skb: &Skb, standing: impl FnOnce(&Skb, &Settings, Outgoing) -> Standing) -> i32 {
    // Without settings no flow was ever carried.
    let Some(settings) = settings() else { return NEXT };
    // The kernel writes headers into the linear part. Other senders (AF_PACKET) need not.
    if !skb.is_readable(HEADERS) && !skb.is_linear() && skb.pull(HEADERS).is_err() {
        return NEXT;
    }
    let Some(outgoing) = egress::parse(skb, settings.alias, settings.source_alias) else { return NEXT };
    let mut reason = egress::decide(standing(skb, settings, outgoing), outgoing.kind);
    if reason.verdict().is_carried() && translate(skb, settings, outgoing).is_err() {
        reason = Reason::ReplyFailed;
    }
    count(reason);
    if reason.verdict().is_carried() { NEXT } else { DROP }
}

#[inline(always)]
fn translate(skb: &Skb, settings: &Settings, outgoing: Outgoing) -> Result<(), i32> {
    let checksum = (!outgoing.is_later_fragment).then(|| Checksum::of(outgoing.protocol, outgoing.transport));
    if matches!(outgoing.kind, TupleKind::Direct) {
        rewrite::replace(skb, checksum, Address::Destination, settings.source_alias, LOCALHOST)?;
    }
    rewrite::replace(skb, checksum, Address::Source, settings.alias, LOCALHOST)
}
