//! Conntrack's entries, read by ctnetlink.

use std::net::Ipv4Addr;

use anyhow::Result;
use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_sock_diag::constants::AF_INET;
use netlink_sys::protocols::NETLINK_NETFILTER;
use wsl_mirror_core::abi::Protocol;

use super::netlink::Conversation;

/// `NFNL_SUBSYS_CTNETLINK << 8`.
pub const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = SUBSYSTEM | 1;
/// `struct nfgenmsg`: IPv4, version 0, no resource.
pub const FAMILY: [u8; 4] = [AF_INET, 0, 0, 0];

// `enum ctattr_type` and what is nested in it.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const ID: u16 = 12;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// `IPS_DST_NAT`.
const TRANSLATED: u32 = 1 << 5;
/// `TCP_CONNTRACK_TIME_WAIT`; `TCP_CONNTRACK_CLOSE` is the next.
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;

/// The addresses and ports of one direction. Ports in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The sender.
    pub source: (Ipv4Addr, u16),
    /// The receiver.
    pub destination: (Ipv4Addr, u16),
}

/// An entry of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The direction of the first packet.
    pub original: Tuple,
    /// The other direction, as the listener sends.
    pub reply: Tuple,
    /// Whether the destination is translated.
    pub is_translated: bool,
    /// Whether the connection is over and conntrack only remembers it.
    pub is_over: bool,
    /// The kernel's number of the entry.
    pub id: u32,
}

/// Every entry of IPv4 whose first packet went to this address.
pub fn entries_to(address: Ipv4Addr) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    Conversation::begin(NETLINK_NETFILTER)?.ask(GET, NLM_F_REQUEST | NLM_F_DUMP, &FAMILY, |body| {
        entries.extend(parse(body).filter(|entry| entry.original.destination.0 == address));
        Ok(())
    })?;
    Ok(entries)
}

/// The attributes by which the kernel finds an entry again.
pub fn key(entry: &Entry) -> Vec<u8> {
    let (source, destination) = (entry.original.source, entry.original.destination);
    let ip = [attribute(IP_SOURCE, &source.0.octets()), attribute(IP_DESTINATION, &destination.0.octets())];
    let protocol = [
        attribute(PROTOCOL_NUMBER, &[entry.protocol as u8]),
        attribute(SOURCE_PORT, &source.1.to_be_bytes()),
        attribute(DESTINATION_PORT, &destination.1.to_be_bytes()),
    ];
    let tuple =
        [attribute(NESTED | TUPLE_IP, &ip.concat()), attribute(NESTED | TUPLE_PROTOCOL, &protocol.concat())];
    [attribute(NESTED | TUPLE_ORIGINAL, &tuple.concat()), attribute(ID, &entry.id.to_be_bytes())].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// The value of an attribute; nothing if it is not there or damaged.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..length)?;
        if kind & !NESTED == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    find(attributes, kind)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// What a message says of an entry: behind `struct nfgenmsg`, attributes.
pub fn parse(body: &[u8]) -> Option<Entry> {
    let attributes = body.get(FAMILY.len()..)?;
    let (original, reply) = (find(attributes, TUPLE_ORIGINAL)?, find(attributes, TUPLE_REPLY)?);
    let protocol = find(find(original, TUPLE_PROTOCOL)?, PROTOCOL_NUMBER)?.first()?;
    let tcp = find(attributes, PROTOCOL_INFO).and_then(|info| find(info, INFO_TCP));
    let state = tcp.and_then(|tcp| find(tcp, TCP_STATE)?.first().copied());
    Some(Entry {
        protocol: Protocol::from_number(*protocol)?,
        original: tuple(original)?,
        reply: tuple(reply)?,
        is_translated: number(attributes, STATUS)? & TRANSLATED != 0,
        is_over: state.is_some_and(|state| matches!(state, TIME_WAIT | CLOSE)),
        id: number(attributes, ID)?,
    })
}

fn tuple(attributes: &[u8]) -> Option<Tuple> {
    let (ip, protocol) = (find(attributes, TUPLE_IP)?, find(attributes, TUPLE_PROTOCOL)?);
    let address = |kind| find(ip, kind)?.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes));
    let port = |kind| find(protocol, kind)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    Some(Tuple {
        source: (address(IP_SOURCE)?, port(SOURCE_PORT)?),
        destination: (address(IP_DESTINATION)?, port(DESTINATION_PORT)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as the kernel sends it (6.18): `tcp 6 … src=127.0.0.1 dst=127.119.0.1 sport=50001 dport=8080`.
    fn message(protocol: u8, status: u32, state: u8) -> Vec<u8> {
        let tuple = |kind, source: ([u8; 4], u16), destination: ([u8; 4], u16)| {
            let ip = [attribute(IP_SOURCE, &source.0), attribute(IP_DESTINATION, &destination.0)].concat();
            let ports = [
                attribute(PROTOCOL_NUMBER, &[protocol]),
                attribute(SOURCE_PORT, &source.1.to_be_bytes()),
                attribute(DESTINATION_PORT, &destination.1.to_be_bytes()),
            ];
            let both =
                [attribute(NESTED | TUPLE_IP, &ip), attribute(NESTED | TUPLE_PROTOCOL, &ports.concat())];
            attribute(NESTED | kind, &both.concat())
        };
        let tcp = attribute(NESTED | INFO_TCP, &attribute(TCP_STATE, &[state]));
        [
            FAMILY.to_vec(),
            tuple(TUPLE_ORIGINAL, ([127, 0, 0, 1], 50_001), ([127, 119, 0, 1], 8080)),
            tuple(TUPLE_REPLY, ([127, 0, 0, 1], 8080), ([127, 0, 0, 1], 50_001)),
            attribute(STATUS, &status.to_be_bytes()),
            attribute(NESTED | PROTOCOL_INFO, &tcp),
            attribute(ID, &7_u32.to_be_bytes()),
        ]
        .concat()
    }

    #[test]
    fn an_entry_has_both_of_its_directions() {
        let entry = parse(&message(6, 0x18e | TRANSLATED, 3)).unwrap();
        let localhost = Ipv4Addr::LOCALHOST;
        let original =
            Tuple { source: (localhost, 50_001), destination: (Ipv4Addr::new(127, 119, 0, 1), 8080) };
        let reply = Tuple { source: (localhost, 8080), destination: (localhost, 50_001) };
        let expected =
            Entry { protocol: Protocol::Tcp, original, reply, is_translated: true, is_over: false, id: 7 };
        assert_eq!(entry, expected);
        assert!(!parse(&message(17, 0x18e, 3)).unwrap().is_translated);
        assert!([TIME_WAIT, CLOSE].iter().all(|state| parse(&message(6, 0, *state)).unwrap().is_over));
        assert_eq!(parse(&message(1, 0, 0)), None, "neither TCP nor UDP");
    }

    #[test]
    fn a_key_names_the_original_direction_and_the_number() {
        let entry = parse(&message(6, 0, 3)).unwrap();
        let key = key(&entry);
        assert_eq!(tuple(find(&key, TUPLE_ORIGINAL).unwrap()), Some(entry.original));
        assert_eq!(number(&key, ID), Some(7));
    }

    #[test]
    fn a_damaged_message_is_no_entry_and_never_a_panic() {
        let whole = message(6, 0, 3);
        for len in 0..whole.len() {
            let _ = parse(&whole[..len]);
        }
        for position in 0..whole.len() {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] = value;
                let _ = parse(&damaged);
            }
        }
    }
}
