//! What may happen to an agent.

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// To interfaces or tc filters.
    Machine,
    /// To nftables.
    PacketFilters,
    /// To the configuration.
    Config,
    /// SIGHUP.
    Reload,
    /// SIGTERM, SIGINT.
    Stop,
}
