//! Local sockets: who could receive this packet?

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock};
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use wsl_mirror_core::abi::{Policy, Protocol};
use wsl_mirror_core::packet::Packet;
use wsl_mirror_core::verdict::Listener;

use crate::frame::Skb;
use crate::owners;
use crate::tuple::Tuple;

/// `TCP_LISTEN` (`include/net/tcp_states.h`).
const LISTEN: u32 = 10;
/// The namespace of the interface that the packet came in on.
const THIS_NETNS: u64 = BPF_F_CURRENT_NETNS as i64 as u64;

/// The socket that would receive a flow that begins with this packet: for TCP one in LISTEN, for UDP a bound one.
///
/// The kernel's own lookup answers, so that of several sockets on one port (another address, `[::]`, `SO_REUSEPORT`)
/// it is the one that the stack is going to choose; only of a group whose members a BPF program chooses from
/// (`SO_ATTACH_REUSEPORT_EBPF`) it may be another member, since these lookups do not run it.
#[inline(always)]
pub fn listener(skb: &Skb, packet: &Packet) -> Option<Listener> {
    let found = with_listener(skb, packet, Task::Tell);
    let owner = Policy::from_byte(found as u8);
    (found & EXISTS != 0).then_some(Listener { owner, by_lo: found & BY_LO != 0 })
}

/// Has the listener remember that its flows are to be delivered by `lo`.
#[inline(always)]
pub fn learn(skb: &Skb, packet: &Packet) {
    with_listener(skb, packet, Task::Learn);
}

/// What is to be done with a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Task {
    Tell,
    Learn,
}

/// Of what is told about a listener: there is one; its flows are delivered by `lo`. The lowest byte is the policy.
const EXISTS: u32 = 1 << 8;
const BY_LO: u32 = 1 << 9;

/// A function in the program too: it is wanted in several places, and only when flows begin.
#[inline(never)]
fn with_listener(skb: &Skb, packet: &Packet, task: Task) -> u32 {
    match packet.protocol {
        Protocol::Tcp => {
            let told = tcp_listener(skb, &mut Tuple::of(packet), task);
            if told == ANOTHER {
                // A SYN on a reused tuple finds the TIME_WAIT socket of the connection before it, and a segment of a
                // connection that socket. Nothing is connected to port 0: from there only a listener is found.
                tcp_listener(skb, &mut Tuple::from_nowhere(packet), task) & !ANOTHER
            } else {
                told
            }
        }
        Protocol::Udp => {
            let mut tuple = Tuple::of(packet);
            // SAFETY: the tuple is valid for the length that is passed with it.
            let socket =
                unsafe { bpf_sk_lookup_udp(skb.as_ptr(), tuple.as_mut_ptr(), Tuple::SIZE, THIS_NETNS, 0) };
            if socket.is_null() {
                return 0;
            }
            let told = carry_out(socket, task);
            release(socket);
            told
        }
    }
}

/// A lookup has found a connection, in whatever state, and no listener.
const ANOTHER: u32 = 1 << 10;

#[inline(always)]
fn tcp_listener(skb: &Skb, tuple: &mut Tuple, task: Task) -> u32 {
    let socket = find_tcp(skb, tuple);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null, and held until `release`; `state` may be read of any kind of TCP socket.
    let told = if unsafe { (*socket).state } == LISTEN { carry_out(socket, task) } else { ANOTHER };
    release(socket);
    told
}

#[inline(always)]
fn carry_out(socket: *mut bpf_sock, task: Task) -> u32 {
    if matches!(task, Task::Learn) {
        owners::deliver_by_lo(socket);
        return EXISTS;
    }
    let by_lo = if owners::is_delivered_by_lo(socket) { BY_LO } else { 0 };
    EXISTS | by_lo | owners::policy(socket) as u32
}

/// Whether a TCP socket with exactly this packet's addresses and ports exists, whatever its state.
#[inline(always)]
pub fn has_connection(skb: &Skb, packet: &Packet) -> bool {
    let socket = find_tcp(skb, &mut Tuple::of(packet));
    if socket.is_null() {
        return false;
    }
    // Where there is none, the lookup answers with the listener.
    // SAFETY: as above.
    let is_connection = unsafe { (*socket).state } != LISTEN;
    release(socket);
    is_connection
}

#[inline(always)]
fn find_tcp(skb: &Skb, tuple: &mut Tuple) -> *mut bpf_sock {
    // SAFETY: the tuple is valid for the length that is passed with it.
    unsafe { bpf_skc_lookup_tcp(skb.as_ptr(), tuple.as_mut_ptr(), Tuple::SIZE, THIS_NETNS, 0) }
}

#[inline(always)]
fn release(socket: *mut bpf_sock) {
    // SAFETY: the socket came from a lookup and is released once.
    unsafe { bpf_sk_release(socket.cast()) };
}
