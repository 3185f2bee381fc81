//! The arithmetic of a checksum that is written 14 bytes too early, for the program that garbles and for tests.
//!
//! The sum runs from [`EARLY`] bytes before the TCP header to the end of the packet, so it includes the destination
//! port, and its complement replaces that port. Sums are ones' complement: 0 and 65535 are the same number.

/// How many bytes before the TCP header the sum begins: an Ethernet header's length.
pub const EARLY: usize = 14;

/// A sum of big-endian 16-bit words, of up to 65,537 of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u32);

impl Sum {
    /// Adds a word.
    #[inline(always)]
    pub const fn add(&mut self, word: [u8; 2]) {
        self.0 += u16::from_be_bytes(word) as u32;
    }

    /// The sum with its carries added.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        fold(self.0)
    }
}

/// The sum of all words. An odd last byte is the high half of a word.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::default();
    let (words, last) = bytes.as_chunks::<2>();
    for word in words {
        sum.add(*word);
    }
    if let [byte] = last {
        sum.add([*byte, 0]);
    }
    sum.fold()
}

/// The port on the wire, by the sum of the packet as it was.
#[inline(always)]
pub const fn garbled_port(sum: u16) -> u16 {
    !sum
}

/// The port that was garbled to `on_wire`, by the sum of the packet without its port. 0 stands for 0 and 65535.
pub const fn recovered_port(on_wire: u16, sum_without_port: u16) -> u16 {
    let difference = !on_wire as u32 + 0xffff - sum_without_port as u32;
    (difference % 0xffff) as u16
}

/// Adds the carries: the sum of up to 65,537 words fits into 16 bits after two rounds.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "two rounds leave 16 bits, and a check would cost a branch"
)]
const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::{EARLY, garbled_port, recovered_port, sum};

    /// Where the port is, counted from [`EARLY`] bytes before the TCP header.
    const PORT: usize = EARLY + 2;

    /// Bytes that look random, the same in every run.
    fn noise(seed: u64) -> impl Iterator<Item = u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[3]
        })
    }

    fn garble_and_recover(mut packet: Vec<u8>, port: u16) -> u16 {
        packet[PORT..PORT + 2].copy_from_slice(&port.to_be_bytes());
        let on_wire = garbled_port(sum(&packet));
        packet[PORT..PORT + 2].fill(0);
        recovered_port(on_wire, sum(&packet))
    }

    #[test]
    fn every_port_is_recovered() {
        for port in 0..=u16::MAX {
            let length = 34 + usize::from(port % 95);
            let packet = noise(u64::from(port) + 1).take(length).collect();
            let recovered = garble_and_recover(packet, port);
            assert_eq!(recovered, if port == u16::MAX { 0 } else { port }, "{port}, {length} bytes");
        }
    }

    #[test]
    fn ports_0_and_65535_are_garbled_to_the_same_port() {
        for packet in [vec![0; 34], vec![0xff; 34], noise(7).take(54).collect()] {
            assert_eq!(garble_and_recover(packet.clone(), 0), 0);
            assert_eq!(garble_and_recover(packet, u16::MAX), 0);
        }
    }

    // A SYN from 127.0.0.1:50000 to 127.0.0.1:8100. TCP's checksum field holds the pseudo header's sum.
    const ETHERNET: [u8; 14] =
        [0x00, 0x15, 0x5d, 0x17, 0x96, 0x5a, 0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x08, 0x00];
    const IPV4: [u8; 20] = [
        0x45, 0x00, 0x00, 0x28, 0x12, 0x34, 0x40, 0x00, 0x80, 0x06, 0xea, 0x99, 0x7f, 0x00, 0x00, 0x01, 0x7f,
        0x00, 0x00, 0x01,
    ];
    const TCP: [u8; 20] = [
        0xc3, 0x50, 0x1f, 0xa4, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x50, 0x02, 0xff, 0xff, 0xfe,
        0x1c, 0x00, 0x00,
    ];

    /// Worked out by hand.
    ///
    /// IPv4's words from its flags on: 4000 + 8006 + ea99 + 7f00 + 0001 + 7f00 + 0001 = 2a8a1.
    /// TCP's words: c350 + 1fa4 + 0001 + 5002 + ffff + fe1c = 33112.
    /// Together 5d9b3, d9b8 with the carries. The complement is 2647, port 9799.
    #[test]
    fn a_syn_to_port_8100_has_port_9799_on_the_wire() {
        let frame = [&ETHERNET[..], &IPV4, &TCP].concat();
        assert_eq!(garbled_port(sum(&frame[ETHERNET.len() + IPV4.len() - EARLY..])), 9799);
        // Without 8100, 5d9b3 is 5ba0f: ba14 with the carries.
        assert_eq!(recovered_port(9799, 0xba14), 8100);
    }

    #[test]
    fn carries_are_added_and_an_odd_byte_is_a_high_half() {
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[0xff, 0xff, 0, 1]), 1);
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x6834);
        assert_eq!(sum(&vec![0xff; 65_536]), 0xffff);
    }
}
