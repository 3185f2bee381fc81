//! How a lab's Windows starts.

use std::{ops::RangeInclusive, time::Duration};

use super::garbling::Garbling;

/// What a lab's Windows starts with; the switches of [`crate::Lab`] change it later.
#[derive(Debug, Clone)]
pub(crate) struct WindowsOptions {
    /// WSL's `[experimental] ignoredPorts`.
    pub(crate) ignored_ports: Vec<u16>,
    /// Ports, TCP and UDP, that Windows sends to the guest although nobody has bound them.
    pub(crate) always_sent: Vec<RangeInclusive<u16>>,
    /// Ranges in which Windows refuses the guest's binds.
    pub(crate) refused: Vec<RangeInclusive<u16>>,
    /// When the tracker gives up a port that `sock_diag` has never shown.
    pub(crate) give_up: Duration,
    /// Whether Windows accepts connections to a released port for a moment.
    pub(crate) ghosts: bool,
    /// Whether what Windows' programs send to `::1` on a port of the guest's is lost.
    pub(crate) silent_ipv6: bool,
    /// Whether Windows drops segments of a TCP flow whose handshake it has seen only half.
    pub(crate) watches_handshakes: bool,
    /// Which destination ports Windows garbles.
    pub(crate) garbling: Garbling,
}

impl Default for WindowsOptions {
    fn default() -> Self {
        Self {
            ignored_ports: Vec::new(),
            always_sent: Vec::new(),
            refused: Vec::new(),
            give_up: GIVE_UP,
            ghosts: true,
            silent_ipv6: true,
            watches_handshakes: false,
            garbling: Garbling::NONE,
        }
    }
}

/// When WSL's tracker gives up a port that it has never seen (`c_bind_timeout_seconds`).
const GIVE_UP: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::WindowsOptions;

    #[test]
    fn an_unseen_port_is_given_up_after_60_s_unless_told() {
        assert_eq!(WindowsOptions::default().give_up.as_secs(), 60);
    }
}
