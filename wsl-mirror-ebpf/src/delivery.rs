//! Delivery by `lo`: packets that go on as if `lo` had received them.

use core::ptr;

use aya_ebpf::bindings::{BPF_F_INGRESS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use wsl_mirror_core::abi::{PortRule, Reason, Settings, SocketDelivery};
use wsl_mirror_core::packet::Packet;
use wsl_mirror_core::verdict::Way;

use crate::action::NEXT;
use crate::counters::{count, port_key};
use crate::maps::{PORT_DELIVERY, SOCKET_DELIVERY};
use crate::skb::Skb;

/// Has a packet go on as if it had been received on `lo`: the program's return value, and the reason that it counts.
#[inline(always)]
pub fn deliver(skb: &Skb, settings: &Settings, reason: Reason) -> (i32, Reason) {
    // To `lo`'s own address: eth_type_trans takes any other for somebody else's frame.
    let reason = if skb.clear_destination().is_ok() { reason } else { Reason::DeliverFailed };
    count(reason);
    if matches!(reason, Reason::DeliverFailed) {
        return (NEXT, reason);
    }
    // SAFETY: no pointers are handed over.
    (unsafe { bpf_redirect(settings.lo_ifindex, u64::from(BPF_F_INGRESS)) } as i32, reason)
}

/// Which ways there are to the packet's destination port.
#[inline(always)]
pub fn way(settings: &Settings, packet: &Packet) -> Way {
    if settings.lo_ifindex == 0 {
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

/// Notes that flows to the packet's destination port are delivered by `lo`.
#[inline(always)]
pub fn set_seen(packet: &Packet) {
    if let Some(port) = PORT_DELIVERY.get_ptr_mut(port_key(packet).index()) {
        // SAFETY: an aligned u32 that lives as long as the map; only ever set to this.
        unsafe { (*port).seen = 1 };
    }
}

/// Whether a rule was seen to eat what goes to this socket and not by `lo`.
#[inline(always)]
pub fn is_by_lo(socket: *mut bpf_sock) -> bool {
    let map = ptr::from_ref(&SOCKET_DELIVERY).cast_mut().cast();
    // SAFETY: the socket is held.
    let delivery: *mut SocketDelivery =
        unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), 0) }.cast();
    // SAFETY: the element stays until the program ends.
    !delivery.is_null() && unsafe { (*delivery).by_lo } == 1
}

/// From now on what goes to this socket is delivered by `lo`. No room: then it is found out again.
#[inline(always)]
pub fn set_by_lo(socket: *mut bpf_sock) {
    let map = ptr::from_ref(&SOCKET_DELIVERY).cast_mut().cast();
    let mut first = SocketDelivery { by_lo: 1 };
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the socket is held; the value has the map's size. Whatever is there already says the same.
    unsafe { bpf_sk_storage_get(map, socket.cast(), (&raw mut first).cast(), create) };
}
