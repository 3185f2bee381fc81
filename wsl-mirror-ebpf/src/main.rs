//! The programs, one file a hook.
//!
//! | hook | program | file |
//! | --- | --- | --- |
//! | tc ingress of `loopback0` | `wsl_mirror` | [`ingress`] |
//! | tc egress of `loopback0` | `wsl_mirror_eg`, before Linux 6.2 `wsl_mirror_egl` | [`egress`] |
//! | bind(2), after the port is chosen | `wsl_mirror_bd4`, `wsl_mirror_bd6` | [`bind`] |
//! | getsockname(2) | `wsl_mirror_gs4`, `wsl_mirror_gs6` | [`getsockname`] |
//! | connect(2) | `wsl_mirror_co4`, `wsl_mirror_co6` | [`connect`] |
//! | getpeername(2) | `wsl_mirror_pn4`, `wsl_mirror_pn6` | [`peername`] |
//! | sendmsg(2) of UDP | `wsl_mirror_sm4` | [`datagrams`] |
//! | recvmsg(2) of UDP | `wsl_mirror_rm4`, `wsl_mirror_rm6` | [`datagrams`] |
//!
//! The programs are the edge: they read the packet, ask the kernel and act. [`wsl_mirror_core`] makes every decision.
//!
//! On the host the crate compiles too, so that clippy and editors see it. Nothing runs that binary.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// rustc calls every feature gate of a stable toolchain's bootstrap build unstable. Stable Rust cannot write one BPF
// instruction by hand.
#![cfg_attr(target_arch = "bpf", expect(unstable_features), feature(asm_experimental_arch))]
#![expect(
    clippy::cast_possible_truncation,
    reason = "a checked conversion costs a branch, and ends in a panic that no program has"
)]

mod action;
mod bind;
mod clients;
mod connect;
mod conntrack;
mod counters;
mod datagrams;
mod egress;
mod events;
mod flow;
mod getsockname;
mod ingress;
mod instructions;
mod kernel;
mod maps;
mod peername;
mod rewrite;
mod routes;
mod skb;
mod sockets;
mod tags;
mod translations;
mod tuple;

/// The kernel lets only GPL-compatible programs call conntrack's kfuncs.
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
