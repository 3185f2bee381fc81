//! What Windows does with a frame.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT, bpf_sock};
use aya_ebpf::helpers::{bpf_clone_redirect, bpf_redirect};
use aya_ebpf::programs::TcContext;
use wsl_mirror_windows::{Dropped, REFLECTION_MAC};

use crate::counters;
use crate::packet::Packet;

/// `AF_PACKET`.
const PACKET_SOCKET: u32 = 17;

/// The frame goes on its way.
pub const PASS: i32 = TC_ACT_OK;

/// Drops the frame and counts it.
#[inline(always)]
pub fn drop(reason: Dropped) -> i32 {
    counters::count(reason);
    TC_ACT_SHOT
}

/// Gives the frame to Windows' own sockets, by the same NIC.
///
/// Source and destination become the NIC's own address, by which [`is_own`] knows the frame when it comes in.
#[inline(always)]
pub fn to_windows(ctx: &TcContext, packet: &Packet) -> i32 {
    if set_addresses(ctx, packet.from, packet.from).is_err() {
        return drop(Dropped::Failed);
    }
    // SAFETY: the helper takes any interface.
    unsafe { bpf_redirect(interface(ctx), u64::from(BPF_F_INGRESS)) as i32 }
}

/// Gives a copy of the frame to Windows' own sockets.
#[inline(always)]
pub fn copy_to_windows(ctx: &TcContext, packet: &Packet) {
    if set_addresses(ctx, packet.from, packet.from).is_ok() {
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_clone_redirect(ctx.as_ptr().cast(), interface(ctx), u64::from(BPF_F_INGRESS)) };
    }
    let _ = set_addresses(ctx, packet.to, packet.from);
}

/// Sends the frame back to the guest that sent it.
#[inline(always)]
pub fn to_guest(ctx: &TcContext, packet: &Packet) -> i32 {
    if set_addresses(ctx, packet.from, REFLECTION_MAC).is_err() {
        return drop(Dropped::Failed);
    }
    // SAFETY: the helper takes any interface.
    unsafe { bpf_redirect(interface(ctx), 0) as i32 }
}

/// Sends a copy of the frame back to the guest that sent it.
#[inline(always)]
pub fn copy_to_guest(ctx: &TcContext, packet: &Packet) {
    if set_addresses(ctx, packet.from, REFLECTION_MAC).is_ok() {
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_clone_redirect(ctx.as_ptr().cast(), interface(ctx), 0) };
    }
    let _ = set_addresses(ctx, packet.to, packet.from);
}

/// Whether Windows sent the frame to its own sockets.
#[inline(always)]
pub fn is_own(packet: &Packet) -> bool {
    packet.from == packet.to
}

/// Whether Windows reflects the frame to the guest.
#[inline(always)]
pub fn is_reflected(packet: &Packet) -> bool {
    packet.from == REFLECTION_MAC
}

/// Whether a packet socket sent the frame: a test made it, and it goes out as it is.
#[inline(always)]
pub fn is_handmade(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let place = unsafe { &raw const (*ctx.skb.skb).__bindgen_anon_2 }.cast::<*const bpf_sock>();
    // SAFETY: the union is a pointer to a socket, or null.
    let socket = unsafe { *place };
    // SAFETY: not null, and the verifier lets programs read the family of any socket.
    !socket.is_null() && unsafe { (*socket).family } == PACKET_SOCKET
}

/// The NIC that the frame comes in or leaves by.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn set_addresses(ctx: &TcContext, to: [u8; 6], from: [u8; 6]) -> Result<(), i64> {
    let addresses =
        [to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5]];
    ctx.skb.store(0, &addresses, 0)
}
