//! A frame, and how the parser sees it.

use std::fmt;

use wsl_mirror_core::packet::{Bytes, Frame, MAX_HEADERS};

/// The address of the interface that receives: a frame is to us exactly if it begins with this.
pub const TO_US: [u8; 6] = [0x00, 0x15, 0x5d, 0x17, 0x96, 0x5a];

/// What the program pulls in when the headers are out of reach.
pub(crate) const PULLED: usize = MAX_HEADERS;
/// The same on egress: Ethernet, and IPv4 without options.
pub(crate) const PULLED_ON_EGRESS: usize = 14 + 20;

/// A frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Sample {
    /// Its first bytes: all headers that it has, and more.
    pub head: Vec<u8>,
    /// How many bytes, all zero, follow: a super-packet takes no memory.
    pub tail: usize,
    /// A VLAN tag that the kernel has taken off the bytes (`skb->vlan_tci`).
    pub vlan_tag: bool,
}

impl Sample {
    /// Its length on the wire.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.clone();
        bytes.resize(self.len(), 0);
        bytes
    }

    /// The first bytes of it, as if the rest had been lost on the way.
    #[must_use]
    pub fn truncated(&self, len: usize) -> Self {
        let head = self.head[..len.min(self.head.len())].to_vec();
        let tail = len.min(self.len()) - head.len();
        Self { head, tail, vlan_tag: self.vlan_tag }
    }

    /// As the parser sees it when everything can be read.
    pub fn frame(&self) -> HostFrame<'_> {
        self.frame_with_linear(usize::MAX)
    }

    /// As the parser sees it when only the first `linear` bytes can be read.
    pub fn frame_with_linear(&self, linear: usize) -> HostFrame<'_> {
        HostFrame {
            readable: &self.head[..linear.min(self.head.len())],
            len: self.len(),
            vlan_tag: self.vlan_tag,
            to_us: self.head.starts_with(&TO_US),
        }
    }
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = if self.vlan_tag { ", tagged" } else { "" };
        write!(f, "{} bytes{tag}: ", self.len())?;
        for (index, byte) in self.head.iter().take(MAX_HEADERS + 16).enumerate() {
            // The Ethernet header, the IPv4 header without options, the rest.
            let gap = if matches!(index, 14 | 34) { " " } else { "" };
            write!(f, "{gap}{byte:02x}")?;
        }
        write!(f, "{}", if self.len() > MAX_HEADERS + 16 { "…" } else { "" })
    }
}

/// A sample under the parser's eyes.
#[derive(Clone, Copy, Debug)]
pub struct HostFrame<'a> {
    readable: &'a [u8],
    len: usize,
    vlan_tag: bool,
    to_us: bool,
}

/// Bytes that the parser checked; reading beside them is a panic.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a>(&'a [u8]);

impl<'a> Frame for HostFrame<'a> {
    type Bytes = Window<'a>;

    fn at(&self, offset: usize, len: usize) -> Option<Window<'a>> {
        let end = offset + len;
        assert!(end <= MAX_HEADERS, "{len} bytes at {offset} are more than the program pulls in");
        self.readable.get(offset..end).map(Window)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn has_vlan_tag(&self) -> bool {
        self.vlan_tag
    }

    fn is_to_us(&self) -> bool {
        self.to_us
    }
}

impl Bytes for Window<'_> {
    fn u8(&self, offset: usize) -> u8 {
        self.0[offset]
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_be_bytes([self.0[offset], self.0[offset + 1]])
    }

    fn four(&self, offset: usize) -> [u8; 4] {
        [self.u8(offset), self.u8(offset + 1), self.u8(offset + 2), self.u8(offset + 3)]
    }
}
