//! Local sockets: the listener and the connection that a packet would reach.

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock};
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use wsl_mirror_core::abi::{Policy, Protocol};
use wsl_mirror_core::packet::Packet;
use wsl_mirror_core::verdict::Listener;

use crate::skb::Skb;
use crate::tags;
use crate::tuple::Tuple;

/// `TCP_LISTEN` (`include/net/tcp_states.h`).
const LISTEN: u32 = 10;
/// The namespace of the interface that the packet came in on.
const THIS_NETNS: u64 = (BPF_F_CURRENT_NETNS as i64).cast_unsigned();

/// The socket that would receive a flow that begins with this packet: for TCP one in LISTEN, for UDP a bound one.
///
/// The kernel's own lookup answers. Among several sockets on one port (another address, `[::]`, `SO_REUSEPORT`) it
/// chooses the one that the stack is going to choose. The lookup does not run a program of
/// `SO_ATTACH_REUSEPORT_EBPF`, so it may find another member of such a group.
#[inline(always)]
pub fn listener(skb: &Skb, packet: &Packet) -> Option<Listener> {
    let answer = find_listener(skb, packet);
    (answer & EXISTS != 0).then_some(Listener { owner: Policy::from_byte(answer as u8) })
}

// The answer about a listener is one number, since a function of the program returns one register. The lowest byte is
// the policy of its owner.
/// There is a listener.
const EXISTS: u32 = 1 << 8;
/// There is no listener; the lookup found a connection, in whatever state.
const CONNECTION: u32 = 1 << 9;

/// Finds the packet's listener. A function in the program too: only flows that begin need it.
#[inline(never)]
fn find_listener(skb: &Skb, packet: &Packet) -> u32 {
    match packet.protocol {
        Protocol::Tcp => {
            let answer = tcp_listener(skb, &mut Tuple::of(packet));
            if answer == CONNECTION {
                // A SYN on a reused tuple finds the TIME_WAIT socket of the connection before it, and a segment of a
                // connection that socket. No connection has port 0: from there the lookup finds only listeners.
                tcp_listener(skb, &mut Tuple::from_port_zero(packet)) & !CONNECTION
            } else {
                answer
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
            let answer = describe(socket);
            release(socket);
            answer
        }
    }
}

#[inline(always)]
fn tcp_listener(skb: &Skb, tuple: &mut Tuple) -> u32 {
    let socket = find_tcp(skb, tuple);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null, and held until `release`; `state` may be read of any kind of TCP socket.
    let answer = if unsafe { (*socket).state } == LISTEN { describe(socket) } else { CONNECTION };
    release(socket);
    answer
}

#[inline(always)]
fn describe(socket: *mut bpf_sock) -> u32 {
    EXISTS | tags::policy(socket) as u32
}

/// Whether a TCP socket with exactly this packet's addresses and ports exists, whatever its state.
#[inline(always)]
pub fn has_connection(skb: &Skb, packet: &Packet) -> bool {
    let socket = find_tcp(skb, &mut Tuple::of(packet));
    if socket.is_null() {
        return false;
    }
    // Without a connection the lookup answers with the listener.
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
