//! bind(2), before the kernel looks: Windows may refuse the port.
//!
//! WSL's tracker asks Windows inside bind(2) (seccomp notification, `GnsPortTracker.cpp`) and returns Windows' error,
//! `EADDRINUSE`: for a port that a program on Windows has, for an excluded range, and from 2.8.7 to 2.9.4 for all of
//! Windows' dynamic range. It does not ask about a port that Windows has given the guest already, nor about port 0.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use wsl_mirror_windows::{Settings, rule};

use crate::maps::SETTINGS;
use crate::ports;
use crate::report::{self, Address};

/// The program lets bind(2) go on.
const ALLOW: i32 = 1;
/// bind(2) returns the error of `bpf_set_retval`.
const REFUSE: i32 = 0;
const EADDRINUSE: i32 = 98;

/// An IPv4 socket is to be bound.
#[cgroup_sock_addr(bind4)]
pub fn windows_asks4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = u32::from_be(unsafe { (*ctx.sock_addr).user_ip4 });
    answer(&ctx, Address::V4(address))
}

/// An IPv6 socket is to be bound.
#[cgroup_sock_addr(bind6)]
pub fn windows_asks6(ctx: SockAddrContext) -> i32 {
    answer(&ctx, Address::V6)
}

#[inline(always)]
fn answer(ctx: &SockAddrContext, address: Address) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let protocol = unsafe { (*ctx.sock_addr).protocol } as u8;
    // SAFETY: as above.
    let port = u16::from_be(unsafe { (*ctx.sock_addr).user_port } as u16);
    // SAFETY: the helper takes this context.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let Some(settings) = SETTINGS.get(0) else { return ALLOW };
    if namespace != settings.guest || port == 0 || !report::is_reported(protocol, port, address) {
        return ALLOW;
    }
    if ports::is_bound(protocol, port) || !is_refused(settings, protocol, port) {
        return ALLOW;
    }
    // SAFETY: the helper takes any number; without it (before Linux 5.18) the object does not load.
    unsafe { bpf_set_retval(-EADDRINUSE) };
    REFUSE
}

/// Whether Windows refuses a bind of the port.
#[inline(always)]
fn is_refused(settings: &Settings, protocol: u8, port: u16) -> bool {
    if ports::rules(protocol, port) & rule::TAKEN != 0 {
        return true;
    }
    // The block is the guest's, although it lies within Windows' dynamic range.
    if ports::is_leased(settings, port) {
        return false;
    }
    let [a, b, c, d] = settings.refused;
    is_within(a, port) || is_within(b, port) || is_within(c, port) || is_within(d, port)
}

#[inline(always)]
const fn is_within([first, last]: [u16; 2], port: u16) -> bool {
    first <= port && port <= last
}
