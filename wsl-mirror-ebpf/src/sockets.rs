//! Local sockets: is there anybody who could receive this packet?

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock};
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use wsl_mirror_ebpf::abi::Protocol;
use wsl_mirror_ebpf::packet::Packet;

use crate::frame::Skb;
use crate::tuple::Tuple;

/// `TCP_LISTEN` (`include/net/tcp_states.h`).
const LISTEN: u32 = 10;
/// The namespace of the interface that the packet came in on.
const THIS_NETNS: u64 = BPF_F_CURRENT_NETNS as i64 as u64;

/// Whether a flow that begins with this packet would be received: for TCP by a socket in LISTEN, for UDP by a
/// bound one.
///
/// TCP asks without the source port: a SYN on a reused tuple would find the TIME_WAIT socket of the connection
/// before it. UDP asks with it: a server may have connected its socket to this very client.
#[inline(always)]
pub fn has_listener(skb: &Skb, packet: &Packet) -> bool {
    match packet.protocol {
        Protocol::Tcp => tcp_state(skb, &mut Tuple::from_nowhere(packet)) == Some(LISTEN),
        Protocol::Udp => {
            let mut tuple = Tuple::of(packet);
            // SAFETY: the tuple is valid for the length that is passed with it.
            let socket =
                unsafe { bpf_sk_lookup_udp(skb.as_ptr(), tuple.as_mut_ptr(), Tuple::SIZE, THIS_NETNS, 0) };
            if socket.is_null() {
                return false;
            }
            release(socket);
            true
        }
    }
}

/// Whether a TCP socket with exactly this packet's addresses and ports exists, whatever its state.
#[inline(always)]
pub fn has_connection(skb: &Skb, packet: &Packet) -> bool {
    // Where there is none, the lookup answers with the listener.
    matches!(tcp_state(skb, &mut Tuple::of(packet)), Some(state) if state != LISTEN)
}

#[inline(always)]
fn tcp_state(skb: &Skb, tuple: &mut Tuple) -> Option<u32> {
    // SAFETY: the tuple is valid for the length that is passed with it.
    let socket = unsafe { bpf_skc_lookup_tcp(skb.as_ptr(), tuple.as_mut_ptr(), Tuple::SIZE, THIS_NETNS, 0) };
    if socket.is_null() {
        return None;
    }
    // SAFETY: not null, and held until `release`; `state` may be read of any kind of TCP socket.
    let state = unsafe { (*socket).state };
    release(socket);
    Some(state)
}

#[inline(always)]
fn release(socket: *mut bpf_sock) {
    // SAFETY: the socket came from a lookup and is released once.
    unsafe { bpf_sk_release(socket.cast()) };
}
