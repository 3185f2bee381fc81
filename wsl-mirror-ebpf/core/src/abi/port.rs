//! Ports of both protocols.

use core::mem::transmute;

/// The number of ports of both protocols: the length of `PORT_PACKETS`, which counts packets of carried flows.
pub const PORTS: usize = 2 * 65_536;

/// A transport protocol that can be steered, by its IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// `IPPROTO_TCP`.
    Tcp = 6,
    /// `IPPROTO_UDP`.
    Udp = 17,
}

impl Protocol {
    /// Both, in the order in which they are listed.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The protocol with this IP protocol number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// `tcp` or `udp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Key of `PORT_POLICY` and `PORT_STATS`: a port of one protocol.
///
/// By hand, for bpftool: `06 00 90 1f` is TCP port 8080 (0x1f90, little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PortKey {
    /// IP protocol number: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Always 0.
    pub zero: u8,
    /// Host order.
    pub port: u16,
}

impl PortKey {
    /// The key of this port.
    #[inline(always)]
    pub const fn new(protocol: Protocol, port: u16) -> Self {
        let word = u32::from_le_bytes([protocol as u8, 0, 0, 0]) | (port as u32) << 16;
        // One store of the word that the map's hash reads: a load that spans several stores waits until they have
        // left the store buffer. Little endian, as every machine that the program runs on.
        // SAFETY: no padding, and every bit pattern is a value.
        unsafe { transmute::<u32, Self>(word) }
    }

    /// Whether this is a port of TCP or UDP: `bpftool map update` may write any bytes.
    pub const fn is_valid(self) -> bool {
        Protocol::from_number(self.protocol).is_some() && self.zero == 0 && self.port != 0
    }

    /// The port's index in `PORT_PACKETS`: the port itself for TCP, 65536 more for UDP.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.port as u32 | ((self.protocol == Protocol::Udp as u8) as u32) << 16
    }

    /// The port at this index of `PORT_PACKETS`.
    pub const fn at_index(index: u32) -> Self {
        let protocol = if index >> 16 == 0 { Protocol::Tcp } else { Protocol::Udp };
        Self::new(protocol, (index & 0xffff) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_an_index_of_its_own() {
        for protocol in Protocol::ALL {
            for port in [0, 1, 80, 65_535] {
                let key = PortKey::new(protocol, port);
                assert!((key.index() as usize) < PORTS);
                assert_eq!(PortKey::at_index(key.index()), key);
            }
        }
    }

    #[test]
    fn a_port_key_has_the_bytes_that_bpftool_takes() {
        let PortKey { protocol, zero, port } = PortKey::new(Protocol::Tcp, 8080);
        assert_eq!((protocol, zero, port.to_le_bytes()), (0x06, 0x00, [0x90, 0x1f]));
    }
}
