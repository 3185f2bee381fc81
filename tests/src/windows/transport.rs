//! Transport protocols, and ports as the programs' maps have them.

use wsl_mirror_windows::{port_key, port_of};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Both of them.
    pub(super) const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The protocol's number.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Tcp => wsl_mirror_windows::TCP,
            Self::Udp => wsl_mirror_windows::UDP,
        }
    }

    /// The port's key in the programs' maps.
    pub(super) fn key(self, port: u16) -> u32 {
        port_key(self.number(), port)
    }
}

/// The text of a [`port_key`], for messages.
pub(super) fn port_text(key: u32) -> String {
    let (protocol, port) = port_of(key);
    let name = if protocol == wsl_mirror_windows::TCP { "tcp" } else { "udp" };
    format!("{port}/{name}")
}
