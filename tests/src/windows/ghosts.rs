//! Ghosts: for a moment after a port was released, Windows accepts connections to it itself.
//!
//! That they do, and for how long ([`LIFE`]), is the model's.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use wsl_mirror_windows::{TCP, port_of};

use crate::Namespace;

/// How long a ghost accepts.
pub(super) const LIFE: Duration = Duration::from_millis(50);

/// The ports on which Windows accepts for a moment.
pub(super) struct Ghosts {
    windows: Namespace,
    listeners: Vec<TcpListener>,
}

impl Ghosts {
    pub(super) fn new(windows: &Namespace) -> Self {
        Self { windows: windows.clone(), listeners: Vec::new() }
    }

    /// Listens on the released TCP ports; returns for how long, if there are any.
    pub(super) fn begin(&mut self, released: &[u32]) -> Option<Duration> {
        let ports = released.iter().map(|key| port_of(*key));
        let ports: Vec<_> = ports.filter(|(protocol, _)| *protocol == TCP).map(|(_, port)| port).collect();
        if ports.is_empty() {
            return None;
        }
        // A port that a program on Windows has gets no ghost.
        let listen = || ports.iter().filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).ok());
        self.listeners.extend(self.windows.enter(|| listen().collect::<Vec<_>>()));
        Some(LIFE)
    }

    /// Closes them, which resets the connections that they accepted.
    pub(super) fn end(&mut self) {
        self.listeners.clear();
    }
}
