//! Events for the agent: a socket was bound or handed on.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_ringbuf_output};
use core::ptr;

use crate::maps::SOCKET_EVENTS;

/// Tells the agent of the context's socket, by its cookie.
///
/// No process: a hook sees process ids of the initial PID namespace, and each distribution of WSL has a namespace of its own.
#[inline(always)]
pub fn tell<C: EbpfContext>(context: &C) {
    // SAFETY: the context is valid while the program runs.
    let mut cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    let ring = ptr::from_ref(&SOCKET_EVENTS).cast_mut().cast();
    // Nobody reads a ring that is full: the agent's regular look finds the socket.
    // SAFETY: the ring is a map of ours, the cookie outlives the call.
    let _ =
        unsafe { bpf_ringbuf_output(ring, ptr::from_mut(&mut cookie).cast(), size_of::<u64>() as u64, 0) };
}
