//! connect(2): a Linux client of a published port is connected to the container instead.
//!
//! TCP Fast Open meets these hooks as well (`__inet_stream_connect`), and MPTCP with its subflow.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use wsl_mirror_core::abi::ClientOutcome;

use crate::clients::Client;
use crate::tags::ALLOW;
use crate::translations::Scope;
use crate::{counters, maps, translations};

/// An IPv4 socket connects.
#[cgroup_sock_addr(connect4)]
pub fn wsl_mirror_co4(ctx: SockAddrContext) -> i32 {
    connecting(Client::of_ipv4(&ctx));
    ALLOW
}

/// An IPv6 socket connects. Of its addresses only `::ffff:0:0/96` is IPv4's.
#[cgroup_sock_addr(connect6)]
pub fn wsl_mirror_co6(ctx: SockAddrContext) -> i32 {
    connecting(Client::of_ipv6(&ctx));
    ALLOW
}

#[inline(always)]
fn connecting(client: Option<Client>) {
    let Some(client) = client else { return };
    let Some(settings) = maps::settings() else { return };
    let source = client.source();
    let attempt = client.attempt(source);
    let decision = client.decide(&attempt, settings);
    if !decision.is_local {
        translations::forget(client.socket(), attempt.destination);
        client.leave_lo(settings.lo_mark);
        return;
    }
    let outcome = client.translate(&attempt, &decision, Scope::Only);
    if decision.stays_on_lo && !matches!(outcome, ClientOutcome::Translated) {
        if client.stay_on_lo(settings.lo_mark) {
            counters::count_client(ClientOutcome::KeptOnLo);
        }
    } else {
        client.leave_lo(settings.lo_mark);
    }
    counters::count_client(outcome);
}
