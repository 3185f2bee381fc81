//! `::1` on Windows: what goes to a port of the guest's is lost, and nobody answers.
//!
//! WSL makes no rule, route or neighbour for IPv6, so `::1` never crosses. Windows clients that try it first wait 21 s
//! for the end of the retransmissions, then take 127.0.0.1 (WSL#10803, WSL#11034, WSL#11186). Seen of TCP; that UDP is
//! lost too is the model's. Ports that the guest has not bound are Windows' own, on `::1` as well.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use wsl_mirror_windows::{Dropped, TCP, UDP};

use crate::frame;
use crate::maps::SETTINGS;
use crate::ports::{self, Owner};

const ETHERNET: usize = 14;
const HEADER: usize = 40;

/// A frame leaves by Windows' `lo`.
#[classifier]
pub fn windows_sends6(ctx: TcContext) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return frame::PASS };
    let Ok(ethernet) = ctx.load::<[u8; ETHERNET]>(0) else { return frame::PASS };
    if ethernet[12] != 0x86 || ethernet[13] != 0xdd {
        return frame::PASS;
    }
    // The next header, the hop limit and the source come before the destination.
    let Ok(protocol) = ctx.load::<u8>(ETHERNET + 6) else { return frame::PASS };
    let Ok(destination) = ctx.load::<[u32; 4]>(ETHERNET + 24) else { return frame::PASS };
    if (protocol != TCP && protocol != UDP) || destination != [0, 0, 0, 1_u32.to_be()] {
        return frame::PASS;
    }
    let Ok(port) = ctx.load::<[u8; 2]>(ETHERNET + HEADER + 2) else { return frame::PASS };
    match ports::owner(settings, protocol, u16::from_be_bytes(port)) {
        Owner::Guest | Owner::Firewall => frame::drop(Dropped::Ipv6),
        Owner::Windows | Owner::Both | Owner::Nobody => frame::PASS,
    }
}
