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

use wsl_mirror_windows::{FlowKey, Settings, TCP};

use crate::maps::FLOWS;
use crate::packet::{Packet, SYN};
use crate::ports::{self, Owner};

/// Windows sends a packet to the guest: it may begin a flow.
#[inline(always)]
pub fn begin_from_windows(packet: &Packet) {
    if packet.protocol != TCP || packet.is_syn() {
        remember(packet);
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
    if begins {
        remember(packet);
        return true;
    }
    is_known(packet.source_port, packet.destination_port, packet)
        || is_known(packet.destination_port, packet.source_port, packet)
}

#[inline(always)]
fn remember(packet: &Packet) {
    let key = key(packet.source_port, packet.destination_port, packet);
    if FLOWS.get_ptr(key).is_none() {
        let _ = FLOWS.insert(key, 1, 0);
    }
}

#[inline(always)]
fn is_known(client: u16, server: u16, packet: &Packet) -> bool {
    FLOWS.get_ptr(key(client, server, packet)).is_some()
}

#[inline(always)]
fn key(client: u16, server: u16, packet: &Packet) -> FlowKey {
    FlowKey { client, server, protocol: packet.protocol, lan: u8::from(packet.is_lan), pad: 0 }
}
