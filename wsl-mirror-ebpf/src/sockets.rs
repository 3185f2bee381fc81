//! Local sockets: who could receive this packet?

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock};
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use wsl_mirror_ebpf::abi::{Policy, Protocol};
use wsl_mirror_ebpf::packet::Packet;

use crate::frame::Skb;
use crate::owners;
use crate::tuple::Tuple;

/// `TCP_LISTEN` (`include/net/tcp_states.h`).
const LISTEN: u32 = 10;
/// The namespace of the interface that the packet came in on.
const THIS_NETNS: u64 = BPF_F_CURRENT_NETNS as i64 as u64;

/// What is written about the owner of the socket that would receive a flow that begins with this packet: for TCP one
/// in LISTEN, for UDP a bound one.
///
/// The kernel's own lookup answers, so that of several sockets on one port (another address, `[::]`, `SO_REUSEPORT`)
/// it is the one that the stack is going to choose; only of a group whose members a BPF program chooses from
/// (`SO_ATTACH_REUSEPORT_EBPF`) it may be another member, since these lookups do not run it.
///
/// A function in the program too: it is asked for in three places, and only when flows begin.
#[inline(never)]
pub fn listener(skb: &Skb, packet: &Packet) -> Option<Policy> {
    match packet.protocol {
        Protocol::Tcp => match tcp_listener(skb, &mut Tuple::of(packet)) {
            // A SYN on a reused tuple finds the TIME_WAIT socket of the connection before it, and a segment of a
            // connection that socket. Nothing is connected to port 0: from there only a listener is found.
            Lookup::Other => match tcp_listener(skb, &mut Tuple::from_nowhere(packet)) {
                Lookup::Listener(policy) => Some(policy),
                Lookup::Other | Lookup::Nothing => None,
            },
            Lookup::Listener(policy) => Some(policy),
            Lookup::Nothing => None,
        },
        Protocol::Udp => {
            let mut tuple = Tuple::of(packet);
            // SAFETY: the tuple is valid for the length that is passed with it.
            let socket =
                unsafe { bpf_sk_lookup_udp(skb.as_ptr(), tuple.as_mut_ptr(), Tuple::SIZE, THIS_NETNS, 0) };
            if socket.is_null() {
                return None;
            }
            let policy = owners::policy(socket);
            release(socket);
            Some(policy)
        }
    }
}

/// What a TCP lookup finds.
enum Lookup {
    Nothing,
    /// A socket in LISTEN, and what is written about its owner.
    Listener(Policy),
    /// A connection, in whatever state.
    Other,
}

#[inline(always)]
fn tcp_listener(skb: &Skb, tuple: &mut Tuple) -> Lookup {
    let socket = find_tcp(skb, tuple);
    if socket.is_null() {
        return Lookup::Nothing;
    }
    // SAFETY: not null, and held until `release`; `state` may be read of any kind of TCP socket.
    let found = if unsafe { (*socket).state } == LISTEN {
        Lookup::Listener(owners::policy(socket))
    } else {
        Lookup::Other
    };
    release(socket);
    found
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
