//! A packet's flow in one number, for the functions of the program that the kernel's verifier follows only once.
//!
//! The verifier follows a function of local scope again at each call, in each state of the caller. A global function it
//! follows once, with arguments of which it knows nothing: numbers, the context, and memory of a known size.

use wsl_mirror_core::abi::Protocol;
use wsl_mirror_core::packet::{Packet, Role};

/// Ports, protocol and role of a packet.
#[inline(always)]
pub const fn pack(packet: &Packet) -> u64 {
    packet.client_port as u64
        | (packet.server_port as u64) << 16
        | (packet.protocol as u64) << 32
        | (packet.role as u64) << 40
}

/// A packet from this client with these ports, this protocol and this role. Where its headers are is not known.
#[inline(always)]
pub const fn unpack(flow: u64, client: u32) -> Packet {
    const TCP: u8 = Protocol::Tcp as u8;
    const SYN: u8 = Role::Syn as u8;
    const ACK: u8 = Role::Ack as u8;
    const OTHER: u8 = Role::Other as u8;
    Packet {
        protocol: match (flow >> 32) as u8 {
            TCP => Protocol::Tcp,
            _ => Protocol::Udp,
        },
        client: client.to_ne_bytes(),
        client_port: flow as u16,
        server_port: (flow >> 16) as u16,
        role: match (flow >> 40) as u8 {
            SYN => Role::Syn,
            ACK => Role::Ack,
            OTHER => Role::Other,
            _ => Role::Datagram,
        },
        transport: 0,
        first_fragment: None,
    }
}
