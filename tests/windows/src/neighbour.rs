//! A neighbour on the LAN, at the wire of Windows' NIC that the guest's `eth0` mirrors.
//!
//! Guest and Windows have one MAC and one address there (`mirrored-mode.md`). A neighbour's packet to that address goes
//! to the owner of its destination port. Any other frame to that MAC goes to the guest as it is: a neighbour can send
//! packets to 127.0.0.1 (moby#45610, moby#49325). Whether the real switch drops some of these is not known.
//!
//! Fragments without ports go to the guest. Broadcasts of the neighbour are Windows' to answer.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use wsl_mirror_windows::{Dropped, NEIGHBOUR_MAC};

use crate::frame;
use crate::maps::{SETTINGS, WIRE};
use crate::packet::Packet;
use crate::ports::{self, Owner};

/// A frame comes in from the wire.
#[classifier]
pub fn neighbour_sends(ctx: TcContext) -> i32 {
    let (Some(settings), Some(wire)) = (SETTINGS.get(0), WIRE.get(0)) else { return frame::PASS };
    let Ok(to) = ctx.load::<[u8; 6]>(0) else { return frame::PASS };
    if is_broadcast(to) {
        return frame::PASS;
    }
    let owner = match Packet::read(&ctx, settings) {
        Some(packet) if packet.is_lan && !packet.is_later_fragment => {
            ports::owner(settings, packet.protocol, packet.destination_port)
        }
        _ => Owner::Guest,
    };
    match owner {
        Owner::Guest | Owner::Both => redirect(wire.lan_nic),
        Owner::Windows | Owner::Nobody => frame::PASS,
        Owner::Firewall => frame::drop(Dropped::Firewall),
    }
}

/// Whether the frame on its way to the guest is the neighbour's: it was decided about at the wire.
#[inline(always)]
pub fn has_sent(packet: &Packet) -> bool {
    packet.from == NEIGHBOUR_MAC
}

/// Sends the guest's frame to the wire, if it is for a neighbour.
#[inline(always)]
pub fn take(ctx: &TcContext) -> Option<i32> {
    let wire = WIRE.get(0)?;
    if wire.wire_nic == 0 || wire.lan_nic != frame::interface(ctx) {
        return None;
    }
    let to = ctx.load::<[u8; 6]>(0).ok()?;
    (to == NEIGHBOUR_MAC || is_broadcast(to)).then(|| redirect(wire.wire_nic))
}

#[inline(always)]
const fn is_broadcast(to: [u8; 6]) -> bool {
    to[0] & 1 != 0
}

#[inline(always)]
fn redirect(nic: u32) -> i32 {
    // SAFETY: the helper takes any interface.
    unsafe { bpf_redirect(nic, 0) as i32 }
}
