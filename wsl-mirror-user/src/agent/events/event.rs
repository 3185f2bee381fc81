//! What may happen to an agent.

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// To interfaces or tc filters.
    Machine,
    /// To IPv4 routes or policy route rules.
    Routing,
    /// To sockets: some were bound or handed on.
    Sockets,
    /// To nftables.
    PacketFilters,
    /// To the configuration.
    Config,
    /// SIGHUP.
    Reload,
    /// SIGTERM, SIGINT.
    Stop,
}
