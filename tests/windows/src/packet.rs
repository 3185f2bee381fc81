//! What Windows reads of a frame.

use aya_ebpf::programs::TcContext;
use wsl_mirror_windows::{LOOPBACK, Settings, TCP, UDP};

const ETHERNET: usize = 14;
/// TCP's flags.
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 0x10;

/// A TCP or UDP packet to 127.0.0.1 or to the address that guest and Windows share.
#[derive(Clone, Copy)]
pub struct Packet {
    pub from: [u8; 6],
    pub to: [u8; 6],
    pub source: u32,
    pub destination: u32,
    pub protocol: u8,
    pub id: u16,
    /// Whether it is a fragment without ports.
    pub is_later_fragment: bool,
    pub more_fragments: bool,
    pub source_port: u16,
    pub destination_port: u16,
    /// TCP's flags; none of a fragment without ports, none of UDP.
    pub flags: u8,
    /// By the shared address, not by 127.0.0.1.
    pub is_lan: bool,
    /// Where the transport header begins and where the packet ends, in the frame.
    pub transport: usize,
    pub end: usize,
}

impl Packet {
    /// Whether it is a TCP segment with SYN and without ACK.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// The packet, if Windows has to decide about it.
    #[inline(always)]
    pub fn read(ctx: &TcContext, settings: &Settings) -> Option<Self> {
        let ethernet: [u8; ETHERNET] = ctx.load(0).ok()?;
        if ethernet[12] != 0x08 || ethernet[13] != 0 {
            return None;
        }
        let ip: [u8; 20] = ctx.load(ETHERNET).ok()?;
        let protocol = ip[9];
        let destination = u32::from_be_bytes([ip[16], ip[17], ip[18], ip[19]]);
        let is_lan = destination == settings.lan;
        if (protocol != TCP && protocol != UDP) || !(destination == LOOPBACK || is_lan) {
            return None;
        }
        let fragment = u16::from_be_bytes([ip[6], ip[7]]);
        let is_later_fragment = fragment & 0x1fff != 0;
        let transport = ETHERNET + 4 * (ip[0] & 0xf) as usize;
        let (mut source_port, mut destination_port, mut flags) = (0, 0, 0);
        if !is_later_fragment {
            let ports: [u8; 4] = ctx.load(transport).ok()?;
            source_port = u16::from_be_bytes([ports[0], ports[1]]);
            destination_port = u16::from_be_bytes([ports[2], ports[3]]);
            if protocol == TCP {
                flags = ctx.load(transport + 13).ok()?;
            }
        }
        Some(Self {
            from: [ethernet[6], ethernet[7], ethernet[8], ethernet[9], ethernet[10], ethernet[11]],
            to: [ethernet[0], ethernet[1], ethernet[2], ethernet[3], ethernet[4], ethernet[5]],
            source: u32::from_be_bytes([ip[12], ip[13], ip[14], ip[15]]),
            destination,
            protocol,
            id: u16::from_be_bytes([ip[4], ip[5]]),
            is_later_fragment,
            more_fragments: fragment & 0x2000 != 0,
            source_port,
            destination_port,
            flags,
            is_lan,
            transport,
            end: ETHERNET + u16::from_be_bytes([ip[2], ip[3]]) as usize,
        })
    }
}
