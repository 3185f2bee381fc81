//! sendmsg(2) and recvmsg(2) of UDP: datagrams of sockets that are not connected, and the names of their senders.
//!
//! Each of these hooks makes the socket's lock be taken for every such datagram on the machine, so they are attached only
//! while a published UDP port exists.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::clients::Client;
use crate::tags::ALLOW;
use crate::translations::Scope;
use crate::{counters, maps, peername, translations};

/// A socket sends a datagram to an IPv4 address. IPv6 sockets meet it too, for `::ffff:0:0/96` (`udpv6_sendmsg`).
#[cgroup_sock_addr(sendmsg4)]
pub fn wsl_mirror_sm4(ctx: SockAddrContext) -> i32 {
    if let Some(client) = Client::of_ipv4(&ctx) {
        sending(&client);
    }
    ALLOW
}

/// An IPv4 socket is told the sender of a datagram.
#[cgroup_sock_addr(recvmsg4)]
pub fn wsl_mirror_rm4(ctx: SockAddrContext) -> i32 {
    peername::restore(Client::of_ipv4(&ctx));
    ALLOW
}

/// An IPv6 socket is told the sender of a datagram.
#[cgroup_sock_addr(recvmsg6)]
pub fn wsl_mirror_rm6(ctx: SockAddrContext) -> i32 {
    peername::restore(Client::of_ipv6(&ctx));
    ALLOW
}

#[inline(always)]
fn sending(client: &Client) {
    // A connected IPv6 socket names its peer here with each datagram, as the kernel knows it (`udpv6_sendmsg`).
    if client.is_connected_there() {
        return;
    }
    let Some(settings) = maps::settings() else { return };
    // The socket's own address, or the one that the datagram names (IP_PKTINFO).
    let source = client.datagram_source();
    let attempt = client.attempt(source);
    let decision = client.decide(&attempt, settings);
    if !decision.is_local {
        translations::forget(client.socket(), attempt.destination);
        return;
    }
    counters::count_client(client.translate(&attempt, &decision, Scope::Another));
}
