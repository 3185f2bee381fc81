//! Garbled ports: what Windows sends to the guest on `loopback0` arrives with another destination port.
//!
//! On some Windows builds checksum completion starts 14 bytes too early, so the checksum lands on the destination port
//! and TCP's own checksum keeps the pseudo header's sum (WSL#41137; the analysis of the thread). SYN, SYN+ACK and RST
//! were seen hit (WSL#41137, WSL#40343, WSL#10855), also on connections of Linux to itself (WSL#41102).
//!
//! In the lab a reset keeps a complete checksum instead: its kernel leaves none to the NIC (`ip_send_unicast_reply()`).
//!
//! The state checks see the true port: Windows garbles a packet after it has decided about it. The guest's answer comes
//! from the garbled port and so belongs to no flow that Windows knows.
//!
//! Only packets of up to [`LONGEST`] bytes from the beginning of the sum are garbled, and of an even length: SYN, SYN+ACK
//! and RST without data are.

use aya_ebpf::programs::TcContext;
use wsl_mirror_windows::checksum::{self, EARLY, Sum};
use wsl_mirror_windows::{TCP, garbled};

use crate::maps::GARBLE;
use crate::packet::{ACK, Packet, RST, SYN};

/// How many bytes the program sums up.
const LONGEST: usize = 128;

/// Garbles the destination port of a packet to the guest, if the lab wants it so.
#[inline(always)]
pub fn garble(ctx: &TcContext, packet: &Packet) {
    if packet.protocol != TCP || packet.is_lan || packet.is_later_fragment || !is_chosen(packet.flags) {
        return;
    }
    let Some(sum) = sum(ctx, packet.transport - EARLY, packet.end) else { return };
    let port = checksum::garbled_port(sum);
    let _ = ctx.store(packet.transport + 2, &port.to_be_bytes(), 0);
    if let Some(garble) = GARBLE.get_ptr_mut(0) {
        // SAFETY: the element is aligned and lives as long as the map.
        unsafe { (*garble).garbled += 1 };
    }
}

/// The sum of the frame's bytes from `begin` to `end`, if they are few enough and whole words.
#[inline(always)]
fn sum(ctx: &TcContext, begin: usize, end: usize) -> Option<u16> {
    if end > begin + LONGEST || !(end - begin).is_multiple_of(2) {
        return None;
    }
    let mut sum = Sum::default();
    // One word at a time: the verifier knows no bound of a length that was computed. The loop ends at the first word
    // past the packet, or the verifier follows each number of words through all further rounds.
    for index in 0..LONGEST / 2 {
        let at = begin + 2 * index;
        if at >= end {
            break;
        }
        sum.add(ctx.load(at).ok()?);
    }
    Some(sum.fold())
}

/// Whether the lab wants such a packet garbled; the chosen share is spread evenly, beginning with the first one.
#[inline(always)]
fn is_chosen(flags: u8) -> bool {
    let kind = if flags & RST != 0 {
        garbled::RST
    } else if flags & SYN == 0 {
        return false;
    } else if flags & ACK != 0 {
        garbled::SYN_ACK
    } else {
        garbled::SYN
    };
    let Some(garble) = GARBLE.get_ptr_mut(0) else { return false };
    // SAFETY: the element is aligned and lives as long as the map.
    let garble = unsafe { &mut *garble };
    if garble.kinds & kind == 0 {
        return false;
    }
    let seen = garble.seen;
    garble.seen += 1;
    seen * u64::from(garble.per_mille) % 1000 < u64::from(garble.per_mille)
}
