//! Mirrored networks of which a part is missing.

/// The part that is missing. Each was seen on WSL after an update of Windows or a VPN change (WSL#14080, WSL#41398,
/// WSL#41228; `mirrored-mode.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfMade {
    /// The guest has no `loopback0`.
    NoLoopback0,
    /// `loopback0` is up, and `eth0` is down.
    Eth0Down,
    /// Table 127 is empty: no route to 127.0.0.1 by `loopback0`.
    NoTable127,
    /// `loopback0` has no neighbour entry of table 127's gateway.
    NoNeighbour,
}

impl HalfMade {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::NoLoopback0, Self::Eth0Down, Self::NoTable127, Self::NoNeighbour];
}
