//! The flows that Windows knows.
//!
//! The model's: Windows translates a flow at its beginning, and drops what the guest sends in no flow. A flow stays
//! known when its port is released.
//!
//! A flow does not say where its packets go: each goes to the owner of its destination port ([`crate::ports`]). If
//! Windows has released that port, its own sockets get the packets of the flow, and reset it.
//!
//! UDP has next to no state. Each datagram to the guest begins a flow, and so does one from a port of the guest's.
//! A datagram is of no flow only if the guest has lost its source port, and Windows the flow.
//!
//! A Windows that watches handshakes ([`Settings::watches_handshakes`]) drops segments of a flow of which it has seen only the
//! SYN or only the SYN+ACK. It does not watch windows and sequence numbers.

use wsl_mirror_windows::{FlowKey, Settings, TCP, handshake};

use crate::maps::FLOWS;
use crate::packet::{ACK, Packet, RST, SYN};
use crate::ports::{self, Owner};

/// Windows sends a packet to the guest: it may begin a flow.
#[inline(always)]
pub fn begin_from_windows(packet: &Packet) {
    if packet.protocol != TCP || packet.is_syn() {
        remember(packet, handshake::SYN);
    } else if packet.flags & SYN != 0 {
        note_answer(packet);
    }
}

/// Whether Windows accepts a packet of the guest's: the beginning of a flow, or one of a known flow.
///
/// A datagram begins a flow if its source port is bound or leased. Every SYN does, and a SYN+ACK to a port of the
/// guest's: Linux' connection to Docker without docker-proxy succeeds before Linux 6.7, although Windows never sees its
/// SYN (moby#53553).
#[inline(always)]
pub fn accepts_from_guest(settings: &Settings, packet: &Packet, owner: Owner) -> bool {
    let begins = if packet.protocol == TCP {
        packet.is_syn() || packet.flags & SYN != 0 && owner == Owner::Guest
    } else {
        ports::is_leased(settings, packet.source_port) || ports::is_bound(packet.protocol, packet.source_port)
    };
    let is_answer = packet.protocol == TCP && packet.flags & (SYN | ACK) == SYN | ACK;
    if is_answer && note_answer(packet) {
        return true;
    }
    if begins {
        remember(packet, if is_answer { handshake::SYN_ACK } else { handshake::SYN });
        return true;
    }
    let watches = packet.protocol == TCP && packet.flags & RST == 0 && settings.watches_handshakes != 0;
    is_known(packet.source_port, packet.destination_port, packet, watches)
        || is_known(packet.destination_port, packet.source_port, packet, watches)
}

#[inline(always)]
fn remember(packet: &Packet, seen: u8) {
    let key = key(packet.source_port, packet.destination_port, packet);
    // A SYN on a port that was in use before begins anew.
    if packet.is_syn() || FLOWS.get_ptr(key).is_none() {
        let _ = FLOWS.insert(key, seen, 0);
    }
}

/// A SYN+ACK answers a SYN that Windows has seen; whether it does.
#[inline(always)]
fn note_answer(packet: &Packet) -> bool {
    let key = key(packet.destination_port, packet.source_port, packet);
    match seen(key) {
        Some(before) if before & handshake::SYN != 0 => {
            let _ = FLOWS.insert(key, before | handshake::SYN_ACK, 0);
            true
        }
        _ => false,
    }
}

#[inline(always)]
fn is_known(client: u16, server: u16, packet: &Packet, watches: bool) -> bool {
    match seen(key(client, server, packet)) {
        Some(seen) => !watches || seen == handshake::SYN | handshake::SYN_ACK,
        None => false,
    }
}

#[inline(always)]
fn seen(key: FlowKey) -> Option<u8> {
    // SAFETY: the value is one byte, which is always whole.
    FLOWS.get_ptr(key).map(|seen| unsafe { *seen })
}

#[inline(always)]
fn key(client: u16, server: u16, packet: &Packet) -> FlowKey {
    FlowKey { client, server, protocol: packet.protocol, lan: u8::from(packet.is_lan), pad: 0 }
}
