//! Flows that the programs remember.

use core::mem::transmute;

use super::Protocol;

/// Key of `FLOWS` (LRU hash): the client's side of a flow. The server's address is always 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The client's address, 127.x.y.z, in the order in which one writes it.
    pub client: [u8; 4],
    /// Host order.
    pub client_port: u16,
    /// Host order.
    pub server_port: u16,
    /// IP protocol number: 6 TCP, 17 UDP. 32 bits wide, so that the key has no padding.
    pub protocol: u32,
}

impl FlowKey {
    /// The key of this flow.
    #[inline(always)]
    pub const fn new(protocol: Protocol, client: [u8; 4], client_port: u16, server_port: u16) -> Self {
        let ports = client_port as u32 | (server_port as u32) << 16;
        // SAFETY: as for `PortKey`.
        unsafe { transmute::<[u32; 3], Self>([u32::from_ne_bytes(client), ports, protocol as u32]) }
    }
}

/// Value of `FLOWS`: who carries a flow, and how it is delivered.
///
/// The program reads it where a flow's conntrack entry is lost, and for flows that are delivered by `lo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowState {
    /// A [`Carrier`].
    pub carrier: u32,
    /// 1: the flow is delivered by `lo`. 0: it takes the plain way.
    pub by_lo: u32,
    /// TCP sequence number of the first SYN, of a flow within Linux.
    pub sequence: u32,
}

impl FlowState {
    /// A flow and its carrier.
    #[inline(always)]
    pub const fn new(carrier: Carrier, by_lo: bool) -> Self {
        Self { carrier: carrier as u32, by_lo: by_lo as u32, sequence: 0 }
    }

    /// The same flow, of which a SYN with this sequence number was seen.
    #[must_use]
    #[inline(always)]
    pub const fn with_sequence(self, sequence: u32) -> Self {
        Self { sequence, ..self }
    }
}

/// Who carries a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Carrier {
    /// The listener: the flow was steered when it began.
    Listener = 1,
    /// An engine, by DNAT. Noted of UDP only: a datagram does not tell whether its flow has just begun.
    Engine = 2,
    /// The stack alone: a flow from Linux to Linux, to a listener that is steered.
    Linux = 3,
}

impl Carrier {
    /// The carrier that this number stands for.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Listener),
            2 => Some(Self::Engine),
            3 => Some(Self::Linux),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_key_is_made_as_its_fields_are_written() {
        let flow = FlowKey::new(Protocol::Udp, [127, 0, 0, 2], 50_000, 53);
        let fields = FlowKey { client: [127, 0, 0, 2], client_port: 50_000, server_port: 53, protocol: 17 };
        assert_eq!(flow, fields);
    }
}
