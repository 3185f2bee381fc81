//! The Internet checksum (RFC 1071), and what another address makes of it (RFC 1624).

/// Offsets in a frame with an Ethernet header.
const IP: usize = 14;
const IP_CHECKSUM: usize = IP + 10;

/// The one's complement sum of bytes, as big endian words. Zeros behind them change nothing.
pub fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    if let [last] = rest {
        sum += u64::from(*last) << 8;
    }
    fold(sum)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

/// The sum of a packet's transport header and payload, and of the pseudo header before them. Of a right checksum it is
/// 0xffff.
pub fn transport_sum(
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    length: usize,
    bytes: &[u8],
) -> u16 {
    let length = u64::try_from(length).unwrap_or(0);
    fold(
        [sum(&source), sum(&destination), sum(bytes)].map(u64::from).iter().sum::<u64>()
            + u64::from(protocol)
            + length,
    )
}

/// An address of an IPv4 header, by its offset in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// The source.
    Source = 14 + 12,
    /// The destination.
    Destination = 14 + 16,
}

/// A frame's bytes with another address and the checksums that go with it. A wrong checksum stays as wrong as it was.
///
/// The frame has its headers: the parser has understood it.
#[must_use]
pub fn with_address(frame: &[u8], address: Address, new: [u8; 4]) -> Vec<u8> {
    let mut changed = frame.to_vec();
    let at = address as usize;
    let old = [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
    changed[at..at + 4].copy_from_slice(&new);
    mend(&mut changed, IP_CHECKSUM, old, new);
    let is_later_fragment = (u16::from_be_bytes([frame[IP + 6], frame[IP + 7]]) & 0x1fff) != 0;
    let transport = IP + usize::from(frame[IP] & 0xf) * 4;
    match frame[IP + 9] {
        _ if is_later_fragment => {}
        6 => mend(&mut changed, transport + 16, old, new),
        // 0 means that there is none.
        17 if frame[transport + 6..transport + 8] != [0, 0] => {
            mend(&mut changed, transport + 6, old, new);
            if changed[transport + 6..transport + 8] == [0, 0] {
                changed[transport + 6..transport + 8].fill(0xff);
            }
        }
        _ => {}
    }
    changed
}

/// RFC 1624: HC' = ~(~HC + ~m + m').
fn mend(frame: &mut [u8], at: usize, old: [u8; 4], new: [u8; 4]) {
    let checksum = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let terms = [!checksum, !sum(&old), sum(&new)];
    let mended = !fold(terms.map(u64::from).iter().sum());
    frame[at..at + 2].copy_from_slice(&mended.to_be_bytes());
}
