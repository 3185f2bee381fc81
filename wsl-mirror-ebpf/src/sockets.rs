//! Local sockets: the listener and the connection that a packet would reach.

use aya_ebpf::bindings::{__sk_buff, BPF_F_CURRENT_NETNS, bpf_sock};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use wsl_mirror_core::abi::{Policy, Protocol, Target};
use wsl_mirror_core::packet::{LOCALHOST, Packet};
use wsl_mirror_core::verdict::Listener;

use crate::flow;
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
pub fn listener(skb: &Skb, packet: &Packet) -> Listener {
    let mut target = Target::NONE;
    let answer = ask(skb, packet, &mut target, 0);
    // Hidden from the verifier: else it follows all later code once for each policy.
    let answer = skb.opaque(u64::from(answer)) as u32;
    Listener {
        exists: answer & EXISTS != 0,
        owner: Policy::from_byte(answer as u8),
        has_target: answer & HAS_TARGET != 0,
        target,
    }
}

/// Notes on the packet's listener that a direct flow to its target was found unanswered.
#[inline(always)]
pub fn note_unanswered(skb: &Skb, packet: &Packet) {
    // SAFETY: no pointers are handed over.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut target = Target::NONE;
    ask(skb, packet, &mut target, now);
}

// The answer about a listener is one number, since a function of the program returns one register. The lowest byte is
// the policy of its owner.
/// There is a listener.
const EXISTS: u32 = 1 << 8;
/// There is no listener; the lookup found a connection, in whatever state.
const CONNECTION: u32 = 1 << 9;
/// The listener has a target, which was copied.
const HAS_TARGET: u32 = 1 << 10;

#[inline(always)]
fn ask(skb: &Skb, packet: &Packet, target: &mut Target, unanswered_at: u64) -> u32 {
    let client = u32::from_ne_bytes(packet.client);
    wsl_mirror_listener(skb.raw(), flow::pack(packet), client, target, unanswered_at)
}

/// Finds the packet's listener and copies its target. If `unanswered_at` is not 0, the target gets this note.
///
/// A function in the program too, and a global one: the verifier follows it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn wsl_mirror_listener(
    context: *mut __sk_buff,
    flow: u64,
    client: u32,
    target: *mut Target,
    unanswered_at: u64,
) -> u32 {
    let (skb, packet) = (&Skb::of(context), &flow::unpack(flow, client));
    // The verifier wants the question.
    // SAFETY: the caller's own target, which nobody else has.
    let Some(target) = (unsafe { target.as_mut() }) else { return 0 };
    match packet.protocol {
        Protocol::Tcp => {
            let answer = tcp_listener(skb, &mut Tuple::of(packet), target, unanswered_at);
            if answer == CONNECTION {
                // A SYN on a reused tuple finds the TIME_WAIT socket of the connection before it, and a segment of a
                // connection that socket. No connection has port 0: from there the lookup finds only listeners.
                tcp_listener(skb, &mut Tuple::from_port_zero(packet), target, unanswered_at) & !CONNECTION
            } else {
                answer
            }
        }
        Protocol::Udp => {
            let socket = find_udp(skb, &mut Tuple::of(packet));
            if socket.is_null() {
                return 0;
            }
            let answer = describe(socket, target, unanswered_at);
            release(socket);
            answer
        }
    }
}

#[inline(always)]
fn tcp_listener(skb: &Skb, tuple: &mut Tuple, target: &mut Target, unanswered_at: u64) -> u32 {
    let socket = find_tcp(skb, tuple);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null, and held until `release`; `state` may be read of any kind of TCP socket.
    let is_listener = unsafe { (*socket).state } == LISTEN;
    let answer = if is_listener { describe(socket, target, unanswered_at) } else { CONNECTION };
    release(socket);
    answer
}

#[inline(always)]
fn describe(socket: *mut bpf_sock, target: &mut Target, unanswered_at: u64) -> u32 {
    let answer = EXISTS | tags::policy(socket) as u32;
    if tags::read_target(socket, target, unanswered_at) { answer | HAS_TARGET } else { answer }
}

/// Whether a UDP socket of this machine sends from the packet's source: the packet is then Linux' own.
#[inline(always)]
pub fn has_sender(skb: &Skb, packet: &Packet) -> bool {
    let mut tuple = Tuple::new((LOCALHOST, packet.server_port), (packet.client, packet.client_port));
    let socket = find_udp(skb, &mut tuple);
    if socket.is_null() {
        return false;
    }
    release(socket);
    true
}

#[inline(always)]
fn find_udp(skb: &Skb, tuple: &mut Tuple) -> *mut bpf_sock {
    // SAFETY: the tuple is valid for the length that is passed with it.
    unsafe { bpf_sk_lookup_udp(skb.as_ptr(), tuple.as_mut_ptr(), Tuple::SIZE, THIS_NETNS, 0) }
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
