//! getpeername(2): a program sees the address that it has named, and not the container's.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::clients::Client;
use crate::tags::ALLOW;
use crate::translations;

/// A process asks for the peer of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn wsl_mirror_pn4(ctx: SockAddrContext) -> i32 {
    restore_peer(Client::of_ipv4(&ctx));
    ALLOW
}

/// A process asks for the peer of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn wsl_mirror_pn6(ctx: SockAddrContext) -> i32 {
    restore_peer(Client::of_ipv6(&ctx));
    ALLOW
}

#[inline(always)]
fn restore_peer(client: Option<Client>) {
    let Some(client) = client else { return };
    if let Some(named) = client.name_by_subflow(client.destination()) {
        client.redirect(named);
    } else {
        restore(Some(client));
    }
}

/// Puts the address that the program has named in the place of the container's, if the socket was translated to that.
#[inline(always)]
pub fn restore(client: Option<Client>) {
    let Some(client) = client else { return };
    if let Some(named) = translations::name_of(client.socket(), client.destination()) {
        client.redirect(named);
    }
}
