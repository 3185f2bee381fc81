//! What is served in a container.

use std::{net::Ipv4Addr, time::Duration};

use crate::{Namespace, tcp, udp};

/// Something that listens in a container, on a port of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// busybox' httpd, a process per connection, no keep-alive; `/` is [`Running::PAGE`].
    Http {
        /// Where.
        port: u16,
    },
    /// The same with `/pattern`: this many bytes of [`crate::services::Pattern`].
    HttpWithFile {
        /// Where.
        port: u16,
        /// How long the file is.
        bytes: u64,
    },
    /// [`crate::services::TcpService::Echo`].
    TcpEcho {
        /// Where.
        port: u16,
    },
    /// [`crate::services::TcpService::Sink`].
    TcpSink {
        /// Where.
        port: u16,
    },
    /// [`crate::services::TcpService::Source`].
    TcpSource {
        /// Where.
        port: u16,
        /// How much every client is sent.
        bytes: u64,
    },
    /// Every datagram goes back to its sender.
    UdpEcho {
        /// Where.
        port: u16,
    },
    /// [`crate::services::TcpService::Named`].
    TcpNamed {
        /// Where.
        port: u16,
        /// The number that it answers with.
        number: u64,
    },
    /// The same for UDP.
    UdpNamed {
        /// Where.
        port: u16,
        /// The number that it answers with.
        number: u64,
    },
}

impl Service {
    pub(crate) fn argument(self) -> String {
        match self {
            Self::Http { port } => format!("http:{port}"),
            Self::HttpWithFile { port, bytes } => format!("http:{port}:{bytes}"),
            Self::TcpEcho { port } => format!("tcp-echo:{port}"),
            Self::TcpSink { port } => format!("tcp-sink:{port}"),
            Self::TcpSource { port, bytes } => format!("tcp-source:{port}:{bytes}"),
            Self::UdpEcho { port } => format!("udp-echo:{port}"),
            Self::TcpNamed { port, number } => format!("tcp-name:{port}:{number}"),
            Self::UdpNamed { port, number } => format!("udp-name:{port}:{number}"),
        }
    }

    /// Whether it answers a client of `namespace` at this address.
    pub(crate) fn answers(self, namespace: &Namespace, address: Ipv4Addr) -> bool {
        let limit = Duration::from_millis(500);
        match self {
            Self::UdpEcho { port } | Self::UdpNamed { port, .. } => {
                udp::Client::new(namespace, (address, port)).limit(limit).request(b"ready?").is_ok()
            }
            Self::Http { port }
            | Self::HttpWithFile { port, .. }
            | Self::TcpEcho { port }
            | Self::TcpSink { port }
            | Self::TcpSource { port, .. }
            | Self::TcpNamed { port, .. } => {
                tcp::Client::new(namespace, (address, port)).limit(limit).connect().is_ok()
            }
        }
    }
}
