//! getsockname(2): a process that was handed a listener tags it.
//!
//! Go's `net.FileListener` calls getsockname(2) on a descriptor that it was handed, and so docker-proxy does on the
//! listener that dockerd has bound for it.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use wsl_mirror_core::abi::Protocol;

use crate::events;
use crate::tags::{self, ALLOW, IfMissing};

const TCP: u32 = Protocol::Tcp as u32;
const UDP: u32 = Protocol::Udp as u32;
/// `BPF_TCP_LISTEN` (`include/uapi/linux/bpf.h`).
const TCP_LISTEN: u32 = 10;

/// A process asks for the address of an IPv4 socket.
#[cgroup_sock_addr(getsockname4)]
pub fn wsl_mirror_gs4(ctx: SockAddrContext) -> i32 {
    queried(&ctx)
}

/// A process asks for the address of an IPv6 socket.
#[cgroup_sock_addr(getsockname6)]
pub fn wsl_mirror_gs6(ctx: SockAddrContext) -> i32 {
    queried(&ctx)
}

#[inline(always)]
fn queried(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let context = unsafe { &*ctx.sock_addr };
    // SAFETY: the union's only field.
    let socket = unsafe { context.__bindgen_anon_1.sk };
    let Some(mut owner) = tags::current_process() else { return ALLOW };
    // Processes ask for the addresses of accepted and connecting sockets all the time, and nothing reads a tag there.
    // A serving socket without a tag was bound before the hooks were attached.
    let is_server = serves(socket);
    let if_missing = if is_server { IfMissing::Create } else { IfMissing::Skip };
    // SAFETY: the socket of the call.
    unsafe { tags::write(socket.cast(), &mut owner, if_missing) };
    if is_server {
        events::tell(ctx);
    }
    ALLOW
}

/// Whether flows can begin at this socket: a TCP listener, or a UDP socket that is bound and not connected.
#[inline(always)]
fn serves(socket: *const bpf_sock) -> bool {
    if socket.is_null() {
        return false;
    }
    // SAFETY: the kernel holds the socket of the call.
    let socket = unsafe { &*socket };
    match socket.protocol {
        TCP => socket.state == TCP_LISTEN,
        UDP => socket.src_port != 0 && socket.dst_port == 0,
        _ => false,
    }
}
