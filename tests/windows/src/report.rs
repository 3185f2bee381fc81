//! bind(2), after the port is chosen: Windows hears of the port, before bind(2) returns.
//!
//! WSL's tracker reports binds in the guest's own network namespace, whether or not anybody listens, by protocol and
//! port (`GnsPortTracker.cpp`). It does not report binds to 127/8 other than 127.0.0.1, port 53 and `ignoredPorts`.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use wsl_mirror_windows::{Bound, LOOPBACK, TCP, UDP, port_key, rule};

use crate::maps::{PORTS, SETTINGS};
use crate::ports;

/// The program lets bind(2) succeed.
const ALLOW: i32 = 1;

/// The address that a socket is bound to.
#[derive(Clone, Copy)]
pub enum Address {
    /// An IPv4 address.
    V4(u32),
    /// Any IPv6 address.
    V6,
}

/// An IPv4 socket was bound.
#[cgroup_sock(post_bind4)]
pub fn windows_hears4(ctx: SockContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = u32::from_be(unsafe { (*ctx.sock).src_ip4 });
    hear(&ctx, Address::V4(address))
}

/// An IPv6 socket was bound: it may serve IPv4 as well.
#[cgroup_sock(post_bind6)]
pub fn windows_hears6(ctx: SockContext) -> i32 {
    hear(&ctx, Address::V6)
}

#[inline(always)]
fn hear(ctx: &SockContext, address: Address) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let protocol = unsafe { (*ctx.sock).protocol } as u8;
    // SAFETY: as above; the kernel gives this port in host order.
    let port = unsafe { (*ctx.sock).src_port } as u16;
    // SAFETY: the helper takes this context.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let Some(settings) = SETTINGS.get_ptr_mut(0) else { return ALLOW };
    // SAFETY: the element lives as long as the map.
    let settings = unsafe { &mut *settings };
    if settings.guest == 0 && u32::from(port) == settings.probe {
        settings.guest = namespace;
        return ALLOW;
    }
    if namespace == settings.guest && is_reported(protocol, port, address) {
        // SAFETY: the helper only reads the clock.
        let at = unsafe { bpf_ktime_get_ns() };
        let _ = PORTS.insert(port_key(protocol, port), Bound { at }, 0);
    }
    ALLOW
}

/// Whether the tracker reports such a bind.
#[inline(always)]
pub fn is_reported(protocol: u8, port: u16, address: Address) -> bool {
    if protocol != TCP && protocol != UDP {
        return false;
    }
    if let Address::V4(address) = address
        && address >> 24 == LOOPBACK >> 24
        && address != LOOPBACK
    {
        return false;
    }
    ports::rules(protocol, port) & rule::NOT_REPORTED == 0
}
