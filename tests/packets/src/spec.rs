//! A frame, field by field.

use wsl_mirror_core::{
    abi::Protocol,
    packet::{Packet, Role},
};

use crate::{
    Sample, TO_US,
    checksum::{sum, transport_sum},
};

/// How much of a payload is not zero, unless it is shorter.
pub const PATTERN: usize = 128;
/// TCP's sequence number in each frame.
const SEQUENCE: u32 = 256;
/// IPv4's identification in each frame.
const IDENTIFICATION: u16 = 0x1234;

/// A frame, field by field. A field that is `None` has its correct value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Destination address.
    pub to: [u8; 6],
    /// VLAN tags in the bytes, outermost first, by their tag protocol identifier.
    pub tags: Vec<u16>,
    /// A VLAN tag that the kernel has taken off the bytes.
    pub vlan_tag: bool,
    /// What the frame claims to carry.
    pub ethertype: u16,
    /// IP version.
    pub version: u8,
    /// IP options, filled up to a multiple of four.
    pub options: Vec<u8>,
    /// IP header length in words.
    pub ihl: Option<u8>,
    /// IP total length.
    pub total_length: Option<u16>,
    /// IP flags and fragment offset.
    pub fragment: u16,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// IP source.
    pub source: [u8; 4],
    /// IP destination.
    pub destination: [u8; 4],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// The rest of the transport header.
    pub transport: Transport,
    /// The transport's checksum is right. Else UDP goes without one, and TCP's is 0.
    pub checksum: bool,
    /// Bytes of payload.
    pub payload: usize,
    /// Bytes behind the packet that do not belong to it (Ethernet's 60, a trailer).
    pub padding: usize,
    /// What becomes of the frame on the way: this part of it is left, in 1/65536.
    pub cut: Option<u16>,
}

/// A transport header without its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// All eight flags.
        flags: u8,
        /// Options, filled up to a multiple of four.
        options: Vec<u8>,
        /// Header length in words.
        data_offset: Option<u8>,
    },
    /// UDP.
    Udp {
        /// Length of header and payload.
        length: Option<u16>,
    },
}

impl Spec {
    /// A datagram from one port of 127.0.0.1 to another.
    pub fn udp(source_port: u16, destination_port: u16, payload: usize) -> Self {
        Self {
            to: TO_US,
            tags: Vec::new(),
            vlan_tag: false,
            ethertype: 0x0800,
            version: 4,
            options: Vec::new(),
            ihl: None,
            total_length: None,
            fragment: 0,
            protocol: None,
            source: [127, 0, 0, 1],
            destination: [127, 0, 0, 1],
            source_port,
            destination_port,
            transport: Transport::Udp { length: None },
            checksum: false,
            payload,
            padding: 0,
            cut: None,
        }
    }

    /// A segment from one port of 127.0.0.1 to another.
    pub fn tcp(source_port: u16, destination_port: u16, flags: u8, payload: usize) -> Self {
        let transport = Transport::Tcp { flags, options: Vec::new(), data_offset: None };
        Self { transport, ..Self::udp(source_port, destination_port, payload) }
    }

    /// Length of the IP header as it lies in the frame.
    pub fn ip_header(&self) -> usize {
        20 + padded(self.options.len())
    }

    /// Length of the transport header as it lies in the frame.
    pub fn transport_header(&self) -> usize {
        match &self.transport {
            Transport::Tcp { options, .. } => 20 + padded(options.len()),
            Transport::Udp { .. } => 8,
        }
    }

    /// Length of the IP packet as it lies in the frame.
    pub fn packet_len(&self) -> usize {
        self.ip_header() + self.transport_header() + self.payload
    }

    /// What the parser has to say if nothing is wrong with the frame.
    pub fn packet(&self) -> Packet {
        let (protocol, role) = match &self.transport {
            Transport::Udp { .. } => (Protocol::Udp, Role::Datagram),
            Transport::Tcp { flags, .. } => {
                let has = |bit: u8| flags & bit != 0;
                let (fin, syn, rst, ack) = (has(1), has(2), has(4), has(16));
                let role = match (syn, ack, rst || fin) {
                    (true, false, false) => Role::Syn,
                    (false, true, false) => Role::Ack,
                    _ => Role::Other,
                };
                (Protocol::Tcp, role)
            }
        };
        Packet {
            protocol,
            client: self.source,
            client_port: self.source_port,
            server_port: self.destination_port,
            role,
            transport: u16::try_from(14 + self.ip_header()).unwrap_or(0),
            first_fragment: (self.fragment & 0x2000 != 0).then_some(IDENTIFICATION),
        }
    }

    /// The frame. The IP checksum is right.
    pub fn build(&self) -> Sample {
        let mut head = Vec::with_capacity(14 + self.packet_len().min(256));
        head.extend(self.to);
        head.extend([0x00, 0x11, 0x22, 0x33, 0x44, 0x55]);
        for tag in &self.tags {
            head.extend(tag.to_be_bytes());
            head.extend([0x00, 0x07]);
        }
        head.extend(self.ethertype.to_be_bytes());
        self.push_ip_header(&mut head);
        self.push_transport_header(&mut head);
        let readable = self.payload.min(PATTERN);
        head.extend((0..readable).map(|index| u8::try_from(index % 251).unwrap_or(0) ^ 0x5a));
        if self.checksum {
            self.fill_checksum(&mut head);
        }
        let tail = self.payload - readable + self.padding;
        let sample = Sample { head, tail, vlan_tag: self.vlan_tag };
        match self.cut {
            None => sample,
            Some(part) => {
                let packet_end = sample.len() - self.padding;
                sample.truncated((packet_end * usize::from(part)) >> 16)
            }
        }
    }

    fn push_ip_header(&self, head: &mut Vec<u8>) {
        let start = head.len();
        let words = u8::try_from(self.ip_header() / 4).unwrap_or(15);
        // What the field cannot say is BIG TCP's.
        let total = self.total_length.unwrap_or_else(|| u16::try_from(self.packet_len()).unwrap_or(0));
        let protocol = self.protocol.unwrap_or(self.packet().protocol as u8);
        head.extend([self.version << 4 | self.ihl.unwrap_or(words) & 0xf, 0]);
        head.extend(total.to_be_bytes());
        head.extend(IDENTIFICATION.to_be_bytes());
        head.extend(self.fragment.to_be_bytes());
        head.extend([64, protocol, 0, 0]);
        head.extend(self.source);
        head.extend(self.destination);
        push_padded(head, &self.options);
        let checksum = !sum(&head[start..]);
        head[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Behind the headers and the payload: the zeros that follow change no sum.
    fn fill_checksum(&self, head: &mut [u8]) {
        let start = head.len() - self.transport_header() - self.payload.min(PATTERN);
        let (protocol, offset) = match self.transport {
            Transport::Tcp { .. } => (6, 16),
            Transport::Udp { .. } => (17, 6),
        };
        let length = self.transport_header() + self.payload;
        let checksum = match !transport_sum(self.source, self.destination, protocol, length, &head[start..]) {
            0 => 0xffff,
            checksum => checksum,
        };
        head[start + offset..start + offset + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    fn push_transport_header(&self, head: &mut Vec<u8>) {
        head.extend(self.source_port.to_be_bytes());
        head.extend(self.destination_port.to_be_bytes());
        match &self.transport {
            Transport::Udp { length } => {
                let truth = u16::try_from(8 + self.payload).unwrap_or(u16::MAX);
                head.extend(length.unwrap_or(truth).to_be_bytes());
                head.extend([0, 0]);
            }
            Transport::Tcp { flags, options, data_offset } => {
                let words = u8::try_from(self.transport_header() / 4).unwrap_or(15);
                head.extend(SEQUENCE.to_be_bytes());
                head.extend([0, 0, 2, 0]);
                head.extend([data_offset.unwrap_or(words) << 4, *flags, 0x20, 0, 0, 0, 0, 0]);
                push_padded(head, options);
            }
        }
    }
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn push_padded(head: &mut Vec<u8>, options: &[u8]) {
    head.extend(options);
    head.resize(head.len() + padded(options.len()) - options.len(), 0);
}
