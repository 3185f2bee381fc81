//! Garbled ports, as the lab switches them on (`garble.rs` of the programs has the facts).

use anyhow::{Result, ensure};
use wsl_mirror_windows::{Garble, garbled};

/// A kind of TCP packets to the guest whose destination port Windows may garble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Garbled {
    /// SYN: connections to the guest.
    Syn,
    /// SYN with ACK: connections of the guest to Windows, or to itself.
    SynAck,
    /// RST: what says that nobody listens.
    Rst,
}

impl Garbled {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Syn, Self::SynAck, Self::Rst];

    const fn bit(self) -> u32 {
        match self {
            Self::Syn => garbled::SYN,
            Self::SynAck => garbled::SYN_ACK,
            Self::Rst => garbled::RST,
        }
    }
}

/// Which packets Windows garbles.
#[derive(Debug, Clone)]
pub(crate) struct Garbling {
    pub(crate) kinds: Vec<Garbled>,
    pub(crate) per_mille: u32,
}

impl Garbling {
    pub(crate) const NONE: Self = Self { kinds: Vec::new(), per_mille: 0 };

    /// The value of the map, with counters at zero.
    pub(super) fn value(&self) -> Result<Garble> {
        ensure!(self.per_mille <= 1000, "{} of a thousand packets", self.per_mille);
        let kinds = self.kinds.iter().fold(0, |bits, kind| bits | kind.bit());
        Ok(Garble { kinds, per_mille: self.per_mille, ..Garble::default() })
    }
}
