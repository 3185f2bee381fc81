//! Forged packets, each with a number by which its traces are known.

use std::fmt;

use wsl_mirror_lab::Lab;

pub type Address = [u8; 4];
/// An address and a port.
pub type End = (Address, u16);

pub const LOCALHOST: Address = [127, 0, 0, 1];
pub const ALIAS: Address = [127, 119, 0, 1];
pub const SOURCE_ALIAS: Address = [192, 0, 0, 8];

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What forged datagrams and segments with data begin with.
const WORD: &[u8] = b"forged";
/// The first sequence number. A forgery's own is `number << NUMBER_SHIFT` further on.
const SEQUENCE: u32 = 0x7a00_0000;
/// Room for a SYN and the data of a segment.
const NUMBER_SHIFT: u32 = 4;
/// Numbers are below it.
const NUMBERS: u32 = 1 << 13;
/// More than one frame carries.
const LONG: usize = 2000;

/// A TCP segment, one or more packets of UDP, or an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Syn,
    SynAck,
    Ack,
    Reset,
    Data,
    Datagram,
    /// A datagram in two fragments.
    Fragments,
    /// "Port unreachable", about a packet of the live flow that the ends name.
    Unreachable(Quoted),
    /// "Fragmentation needed", likewise.
    TooBig(Quoted),
}

/// The packet that an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    pub protocol: u8,
    pub source: End,
    pub destination: End,
}

impl Kind {
    pub const OF_TCP: [Self; 5] = [Self::Syn, Self::SynAck, Self::Ack, Self::Reset, Self::Data];
    pub const OF_UDP: [Self; 2] = [Self::Datagram, Self::Fragments];

    pub const fn protocol(self) -> u8 {
        match self {
            Self::Syn | Self::SynAck | Self::Ack | Self::Reset | Self::Data => TCP,
            Self::Datagram | Self::Fragments => UDP,
            Self::Unreachable(_) | Self::TooBig(_) => ICMP,
        }
    }

    pub const fn is_icmp(self) -> bool {
        self.protocol() == ICMP
    }
}

/// A forgery. Of ICMP errors the ports mean nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Forgery {
    pub kind: Kind,
    pub source: End,
    pub destination: End,
    pub number: u32,
}

impl fmt::Debug for Forgery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = |end: End| format!("{}:{}", end.0.map(|byte| byte.to_string()).join("."), end.1);
        write!(f, "{:?} {} -> {}", self.kind, address(self.source), address(self.destination))
    }
}

impl Forgery {
    /// The IPv4 packets.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        let sequence = self.sequence();
        let segment = |flags, data: &[u8]| vec![self.segment(flags, sequence, sequence ^ 0x00ff_0000, data)];
        match self.kind {
            Kind::Syn => segment(SYN, &[]),
            Kind::SynAck => segment(SYN | ACK, &[]),
            Kind::Ack => segment(ACK, &[]),
            Kind::Reset => segment(RST, &[]),
            Kind::Data => segment(ACK, WORD),
            Kind::Datagram => vec![self.packet(UDP, 0, &self.datagram(WORD.len() + 4))],
            Kind::Fragments => {
                let datagram = self.datagram(LONG);
                let (first, later) = datagram.split_at(1480);
                vec![self.packet(UDP, 0x2000, first), self.packet(UDP, 1480 / 8, later)]
            }
            Kind::Unreachable(quoted) => vec![self.error(3, 0, quoted)],
            Kind::TooBig(quoted) => vec![self.error(4, 576, quoted)],
        }
    }

    const fn sequence(&self) -> u32 {
        SEQUENCE + (self.number << NUMBER_SHIFT)
    }

    /// A reset with exactly this sequence number.
    pub fn reset(source: End, destination: End, sequence: u32) -> Vec<u8> {
        Self { kind: Kind::Reset, source, destination, number: 0 }.segment(RST, sequence, 0, &[])
    }

    fn segment(&self, flags: u8, sequence: u32, acknowledged: u32, data: &[u8]) -> Vec<u8> {
        let mut segment = [self.source.1.to_be_bytes(), self.destination.1.to_be_bytes()].concat();
        segment.extend(sequence.to_be_bytes());
        segment.extend(if flags & ACK == 0 { 0 } else { acknowledged }.to_be_bytes());
        segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(data);
        self.sum(TCP, &mut segment, 16);
        self.packet(TCP, 0, &segment)
    }

    fn datagram(&self, payload: usize) -> Vec<u8> {
        let length = u16::try_from(8 + payload).unwrap_or(u16::MAX);
        let mut datagram = Vec::new();
        for field in [self.source.1, self.destination.1, length, 0] {
            datagram.extend(field.to_be_bytes());
        }
        datagram.extend(WORD);
        datagram.extend(self.number.to_be_bytes());
        datagram.resize(8 + payload, 0);
        self.sum(UDP, &mut datagram, 6);
        datagram
    }

    /// An ICMP error of type 3.
    fn error(&self, code: u8, mtu: u16, quoted: Quoted) -> Vec<u8> {
        let inner = Self { kind: Kind::Ack, source: quoted.source, destination: quoted.destination, ..*self };
        let inner = if quoted.protocol == TCP {
            inner.segment(ACK, self.sequence(), 0, &[])
        } else {
            inner.packet(UDP, 0, &inner.datagram(WORD.len() + 4))
        };
        let mut message = vec![3, code, 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(inner);
        let sum = checksum(&message, 0);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.packet(ICMP, 0, &message)
    }

    /// Writes the checksum of a transport header and its payload.
    fn sum(&self, protocol: u8, bytes: &mut [u8], at: usize) {
        let mut pseudo = [self.source.0, self.destination.0].concat();
        pseudo.extend([0, protocol]);
        pseudo.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        let before: u32 =
            pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = checksum(bytes, before);
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn packet(&self, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend(u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend(u16::try_from(self.number).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0]);
        packet.extend(self.source.0);
        packet.extend(self.destination.0);
        let sum = checksum(&packet, 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    /// Whether this one, not from `loopback0`, gets into a live carried flow as the documentation says. The flow's client
    /// has this port.
    pub fn is_known_open(&self, lab: &Lab, client: impl Fn(u16) -> bool) -> bool {
        let question = self.source.0 == LOCALHOST && self.destination.0 == ALIAS && client(self.source.1);
        let answer = self.source.0 == ALIAS && self.destination.0 == LOCALHOST && client(self.destination.1);
        question || (answer && !lab.is_at_least((6, 2)).unwrap_or(true))
    }
}

/// A packet that a forgery has caused somewhere: itself, or an answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trace {
    pub protocol: u8,
    pub source: End,
    pub destination: End,
    pub number: u32,
    /// A SYN+ACK or RST that a TCP of the network has sent because of it.
    pub is_answer: bool,
}

/// Reads a packet, from its IPv4 header on. None: no forgery has caused it.
pub fn trace(packet: &[u8]) -> Option<Trace> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let protocol = *packet.get(9)?;
    let fragment_offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
    let is_first = fragment_offset == 0;
    let (ip, rest) = packet.split_at_checked(header)?;
    let (number, is_answer) = match protocol {
        TCP if is_first => of_segment(rest)?,
        UDP if is_first => (of_datagram(rest)?, false),
        ICMP if is_first => (trace(rest.get(8..)?)?.number, false),
        _ => return None,
    };
    let address = |at: usize| <Address>::try_from(ip.get(at..at + 4)?).ok();
    let port = |at: usize| if protocol == ICMP { Some(0) } else { u16_at(rest, at) };
    Some(Trace {
        protocol,
        source: (address(12)?, port(0)?),
        destination: (address(16)?, port(2)?),
        number,
        is_answer,
    })
}

/// The number, and whether the segment only answers the forgery.
fn of_segment(segment: &[u8]) -> Option<(u32, bool)> {
    let number = |at: usize| -> Option<u32> {
        let value = u32::from_be_bytes(segment.get(at..at + 4)?.try_into().ok()?);
        let number = value.wrapping_sub(SEQUENCE) >> NUMBER_SHIFT;
        (number < NUMBERS).then_some(number)
    };
    let flags = segment.get(13).copied().unwrap_or(0);
    // The live flows' own answers to segments that do not fit them are plain ACKs.
    let answers = flags & (SYN | ACK) == SYN | ACK || flags & (RST | FIN) == RST;
    let own = number(4).map(|number| (number, false));
    own.or_else(|| if answers { number(8).map(|number| (number, true)) } else { None })
}

fn of_datagram(datagram: &[u8]) -> Option<u32> {
    let number = datagram.get(8..)?.strip_prefix(WORD)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*number))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The internet checksum of these bytes and what was summed up before.
fn checksum(bytes: &[u8], before: u32) -> u16 {
    let mut sum = before;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// What the tests send is right, and the tests find it again.
#[test]
fn forgeries_have_right_checksums_and_their_number() {
    let quoted = Quoted { protocol: UDP, source: (LOCALHOST, 1), destination: (ALIAS, 2) };
    let kinds = Kind::OF_TCP.into_iter().chain([Kind::Datagram, Kind::Unreachable(quoted)]);
    for (number, kind) in (100..).zip(kinds) {
        let forgery = Forgery { kind, source: (ALIAS, 40_000), destination: (LOCALHOST, 8101), number };
        let packet = forgery.packets().remove(0);
        assert_eq!(trace(&packet).map(|trace| trace.number), Some(number), "{forgery:?}");
        assert_eq!(checksum(&packet[..20], 0), 0, "{forgery:?}");
        let (protocol, payload) = (packet[9], &packet[20..]);
        let pseudo = match protocol {
            ICMP => 0,
            _ => {
                0x7f77
                    + 0x0001
                    + 0x7f00
                    + 0x0001
                    + u32::from(protocol)
                    + u32::try_from(payload.len()).unwrap()
            }
        };
        assert_eq!(checksum(payload, pseudo), 0, "{forgery:?}");
    }
}
