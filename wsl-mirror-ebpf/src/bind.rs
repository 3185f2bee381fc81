//! bind(2): a process tags the socket that it binds.
//!
//! The hooks run after the kernel has chosen the port, also where the process asked for any.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use crate::events;
use crate::tags::{self, ALLOW, IfMissing};

/// An IPv4 socket was bound.
#[cgroup_sock(post_bind4)]
pub fn wsl_mirror_bd4(ctx: SockContext) -> i32 {
    bound(&ctx)
}

/// An IPv6 socket was bound: it may serve IPv4 as well.
#[cgroup_sock(post_bind6)]
pub fn wsl_mirror_bd6(ctx: SockContext) -> i32 {
    bound(&ctx)
}

#[inline(always)]
fn bound(ctx: &SockContext) -> i32 {
    let Some(mut owner) = tags::current_process() else { return ALLOW };
    // SAFETY: the context stands for the socket that was bound.
    unsafe { tags::write(ctx.sock.cast(), &mut owner, IfMissing::Create) };
    events::tell(ctx);
    ALLOW
}
