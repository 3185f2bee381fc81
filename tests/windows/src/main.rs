//! The programs of the lab's Windows, one file a hook.
//!
//! | hook | program | file |
//! | --- | --- | --- |
//! | bind(2), before the kernel looks | `windows_asks4`, `windows_asks6` | [`refuse`] |
//! | bind(2), after the port is chosen | `windows_hears4`, `windows_hears6` | [`report`] |
//! | tc egress of Windows' NICs | `windows_sends` | [`egress`] |
//! | tc ingress of Windows' NICs | `windows_takes` | [`ingress`] |
//! | tc egress of Windows' `lo` | `windows_sends6` | [`ipv6`] |
//! | tc ingress of the LAN's wire | `neighbour_sends` | [`neighbour`] |
//!
//! Windows' own traffic to 127.0.0.1 leaves by `winlo0` too, and comes back if it is not for the guest: so one place
//! decides who owns a port ([`ports`]), at the moment of the packet, and a bind counts when bind(2) returns.
//!
//! On the host the crate compiles too, so that clippy and editors see it. Nothing runs that binary.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "a checked conversion costs a branch, and ends in a panic that no program has"
)]

mod counters;
mod egress;
mod flows;
mod fragments;
mod frame;
mod garble;
mod ingress;
mod ipv6;
mod maps;
mod neighbour;
mod packet;
mod ports;
mod refuse;
mod report;

/// The kernel lets only GPL-compatible programs call some helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
