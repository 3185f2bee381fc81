//! What can be wrong with a frame.

use proptest::prelude::*;
use wsl_mirror_core::abi::Reason;

use crate::{Spec, TO_US, Transport};

/// One thing that is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ARP, IPv6, anything.
    Ethertype(u16),
    /// VLAN tags in the bytes.
    Tagged(Vec<u16>),
    /// A VLAN tag beside the bytes.
    TagBeside,
    /// Somebody else's frame.
    ToOthers([u8; 6]),
    /// Only that part of the packet is left, in 1/65536.
    Cut(u16),
    /// Not version 4.
    Version(u8),
    /// Fewer than five words of header.
    Ihl(u8),
    /// Neither TCP nor UDP.
    Protocol(u8),
    /// From outside of 127.0.0.0/8.
    Source([u8; 4]),
    /// To something else than 127.0.0.1.
    Destination([u8; 4]),
    /// Not the first fragment.
    LaterFragment(u16),
    /// The total length has no room for the headers.
    TotalTooShort(u16),
    /// The total length is that much more than there is.
    TotalTooLong(u16),
    /// From port 0.
    SourcePortZero,
    /// To port 0.
    DestinationPortZero,
    /// A TCP header of fewer than five words.
    DataOffsetTooShort(u8),
    /// A TCP header that ends behind the packet.
    DataOffsetTooLong(u8),
    /// A UDP length below that of its header.
    UdpTooShort(u16),
    /// A UDP length that ends that far behind the packet.
    UdpTooLong(u16),
}

impl Fault {
    /// Makes it so, and gives the reason for which a frame passes that has no other fault.
    pub fn apply(&self, spec: &mut Spec) -> Reason {
        match self {
            Self::Ethertype(ethertype) => {
                spec.ethertype = *ethertype;
                Reason::NotIpv4
            }
            Self::Tagged(tags) => {
                spec.tags.clone_from(tags);
                Reason::Vlan
            }
            Self::TagBeside => {
                spec.vlan_tag = true;
                Reason::Vlan
            }
            Self::ToOthers(address) => {
                spec.to = *address;
                Reason::NotToUs
            }
            Self::Cut(part) => {
                // BIG TCP does not say how long it is: nothing tells that a part of it is missing.
                spec.payload %= 1000;
                spec.cut = Some(*part);
                Reason::Truncated
            }
            Self::Version(version) => {
                spec.version = *version;
                Reason::BadHeader
            }
            Self::Ihl(words) => {
                spec.ihl = Some(*words);
                Reason::BadHeader
            }
            Self::Protocol(protocol) => {
                spec.protocol = Some(*protocol);
                Reason::NotTcpUdp
            }
            Self::Source(source) => {
                spec.source = *source;
                Reason::NotLoopback
            }
            Self::Destination(destination) => {
                spec.destination = *destination;
                Reason::NotLoopback
            }
            Self::LaterFragment(fragment) => {
                spec.fragment = *fragment;
                Reason::LaterFragment
            }
            Self::TotalTooShort(total) => {
                // Longer than 65535, it would be BIG TCP's way to say so.
                spec.payload %= 1000;
                let room = spec.ip_header() + spec.transport_header().min(20);
                spec.total_length = Some(total % u16::try_from(room).unwrap_or(1));
                Reason::BadHeader
            }
            Self::TotalTooLong(by) => {
                spec.payload %= 1000;
                let there = u16::try_from(spec.packet_len() + spec.padding).unwrap_or(u16::MAX);
                spec.total_length = Some(there.saturating_add(*by));
                Reason::Truncated
            }
            Self::SourcePortZero => {
                spec.source_port = 0;
                Reason::PortZero
            }
            Self::DestinationPortZero => {
                spec.destination_port = 0;
                Reason::PortZero
            }
            Self::DataOffsetTooShort(words) => {
                spec.transport =
                    Transport::Tcp { flags: 0x10, options: Vec::new(), data_offset: Some(*words) };
                Reason::BadHeader
            }
            Self::DataOffsetTooLong(words) => {
                spec.payload = 0;
                spec.transport =
                    Transport::Tcp { flags: 0x10, options: Vec::new(), data_offset: Some(*words) };
                Reason::BadHeader
            }
            Self::UdpTooShort(length) => {
                spec.payload %= 1000;
                spec.transport = Transport::Udp { length: Some(*length) };
                Reason::BadHeader
            }
            Self::UdpTooLong(by) => {
                spec.payload %= 1000;
                // Of the first fragment of a longer datagram it would be right.
                spec.fragment = 0;
                let there = u16::try_from(8 + spec.payload).unwrap_or(u16::MAX);
                spec.transport = Transport::Udp { length: Some(there.saturating_add(*by)) };
                Reason::BadHeader
            }
        }
    }
}

/// Any fault, each kind about as often as the others.
pub fn fault() -> BoxedStrategy<Fault> {
    let tag = prop_oneof![Just(0x8100_u16), Just(0x88a8)];
    let ethertype =
        prop_oneof![Just(0x0806_u16), Just(0x86dd), Just(0x9100), Just(0x8847), Just(0x0008), any::<u16>()]
            .prop_filter("IPv4 and VLAN", |ethertype| !matches!(ethertype, 0x0800 | 0x8100 | 0x88a8));
    let others = prop_oneof![
        Just([0xff; 6]),
        Just([0; 6]),
        Just([0x01, 0x00, 0x5e, 0, 0, 1]),
        Just([0x00, 0x15, 0x5d, 0x17, 0x96, 0x5b]),
        any::<[u8; 6]>(),
    ]
    .prop_filter("us", |address| *address != TO_US);
    let source =
        prop_oneof![Just([192, 168, 50, 10]), Just([126, 0, 0, 1]), Just([128, 0, 0, 1]), any::<[u8; 4]>()]
            .prop_filter("loopback", |source| source[0] != 127);
    let destination = prop_oneof![
        Just([127, 0, 0, 2]),
        Just([127, 0, 1, 1]),
        Just([127, 1, 0, 1]),
        Just([126, 0, 0, 1]),
        Just([10, 255, 255, 254]),
        Just([192, 168, 50, 10]),
        any::<[u8; 4]>(),
    ]
    .prop_filter("localhost", |destination| *destination != [127, 0, 0, 1]);
    let later = (1..=0x1fff_u16, prop_oneof![Just(0_u16), Just(0x2000), Just(0x4000)]);
    prop_oneof![
        2 => ethertype.prop_map(Fault::Ethertype),
        1 => prop::collection::vec(tag, 1..3).prop_map(Fault::Tagged),
        1 => Just(Fault::TagBeside),
        1 => others.prop_map(Fault::ToOthers),
        2 => any::<u16>().prop_map(Fault::Cut),
        1 => (0..16_u8).prop_filter("IPv4", |version| *version != 4).prop_map(Fault::Version),
        1 => (0..5_u8).prop_map(Fault::Ihl),
        1 => prop_oneof![Just(1_u8), Just(132), any::<u8>()]
            .prop_filter("TCP or UDP", |protocol| !matches!(protocol, 6 | 17)).prop_map(Fault::Protocol),
        1 => source.prop_map(Fault::Source),
        1 => destination.prop_map(Fault::Destination),
        1 => later.prop_map(|(offset, flags)| Fault::LaterFragment(offset | flags)),
        1 => any::<u16>().prop_map(Fault::TotalTooShort),
        1 => prop_oneof![Just(1_u16), 1..=u16::MAX].prop_map(Fault::TotalTooLong),
        1 => Just(Fault::SourcePortZero),
        1 => Just(Fault::DestinationPortZero),
        1 => (0..5_u8).prop_map(Fault::DataOffsetTooShort),
        1 => (6..16_u8).prop_map(Fault::DataOffsetTooLong),
        1 => (0..8_u16).prop_map(Fault::UdpTooShort),
        1 => prop_oneof![Just(1_u16), 1..=u16::MAX].prop_map(Fault::UdpTooLong),
    ]
    .boxed()
}
