//! The cells of the matrix: who asks for what, in which phase, and what came of it.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, time::Duration};

use wsl_mirror_lab::{Lab, checks, tcp, udp};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    Windows,
    Linux,
}

impl Client {
    pub const ALL: [Self; 2] = [Self::Windows, Self::Linux];

    /// A TCP client of this port of 127.0.0.1.
    #[track_caller]
    pub fn tcp(self, lab: &Lab, port: u16) -> tcp::Client {
        match self {
            Self::Windows => checks::windows(lab, port),
            Self::Linux => checks::linux(lab, port),
        }
    }

    /// A UDP client of this port of 127.0.0.1.
    #[track_caller]
    pub fn udp(self, lab: &Lab, port: u16) -> udp::Client {
        match self {
            Self::Windows => checks::windows_udp(lab, port),
            Self::Linux => checks::linux_udp(lab, port),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Windows => "Windows",
            Self::Linux => "Linux",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// The address that a port is published on, or that a service of the host has bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// 0.0.0.0
    Any,
    /// 127.0.0.1
    Loopback,
}

impl Bound {
    pub const ALL: [Self; 2] = [Self::Any, Self::Loopback];

    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Any => Ipv4Addr::UNSPECIFIED,
            Self::Loopback => Ipv4Addr::LOCALHOST,
        }
    }
}

/// Who is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    /// A container, whose port is published on that address.
    Container(Bound),
    /// A program in the guest.
    Host(Bound),
    /// A program on Windows.
    Windows,
}

impl Server {
    /// Under which port of 127.0.0.1.
    pub fn port(self) -> u16 {
        match self {
            Self::Container(Bound::Any) => 8080,
            Self::Container(Bound::Loopback) => 8081,
            Self::Host(Bound::Any) => 8100,
            Self::Host(Bound::Loopback) => 8101,
            Self::Windows => 9100,
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(bound) => write!(f, "container on {}", bound.address()),
            Self::Host(bound) => write!(f, "host on {}", bound.address()),
            Self::Windows => write!(f, "Windows"),
        }
    }
}

/// A client, a protocol and a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub client: Client,
    pub protocol: Protocol,
    pub server: Server,
}

impl Cell {
    /// Every cell: containers and programs of the host from both sides, and Windows from Linux.
    pub fn all() -> impl Iterator<Item = Self> {
        let servers =
            Bound::ALL.into_iter().flat_map(|bound| [Server::Container(bound), Server::Host(bound)]);
        let both = servers.flat_map(|server| Client::ALL.map(|client| (client, server)));
        both.chain([(Client::Linux, Server::Windows)]).flat_map(|(client, server)| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| Self { client, protocol, server })
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, {}", self.client, self.server, self.protocol)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Without,
    /// `load` alone, of containers that run already.
    Load,
    /// `run`, of containers that started later.
    Run,
    /// `load` with `path = "direct"`.
    Direct,
    AfterUnload,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Without => "without",
            Self::Load => "load",
            Self::Run => "run",
            Self::Direct => "direct",
            Self::AfterUnload => "after",
        })
    }
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every request was answered; the median of how long it took to connect (UDP: to be answered).
    Answers(Duration),
    /// Some requests were answered, and one failed like this.
    Sometimes(String),
    /// None was, and one failed like this.
    Never(String),
}

impl Outcome {
    pub fn answers(&self) -> bool {
        matches!(self, Self::Answers(_))
    }

    pub fn median(&self) -> Option<Duration> {
        match self {
            Self::Answers(median) => Some(*median),
            Self::Sometimes(_) | Self::Never(_) => None,
        }
    }

    /// How a request failed, if one did.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Answers(_) => None,
            Self::Sometimes(failure) | Self::Never(failure) => Some(failure),
        }
    }
}

/// One configuration's cells of one phase.
pub type Column = BTreeMap<Cell, Outcome>;

/// One configuration's cells of all phases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    pub without: Column,
    pub load: Column,
    pub run: Column,
    pub direct: Column,
    pub after: Column,
}

impl Columns {
    pub fn phases(&self) -> [(Phase, &Column); 5] {
        let [load, run, direct] = self.with_us();
        [(Phase::Without, &self.without), load, run, direct, (Phase::AfterUnload, &self.after)]
    }

    /// The phases in which we are there.
    pub fn with_us(&self) -> [(Phase, &Column); 3] {
        [(Phase::Load, &self.load), (Phase::Run, &self.run), (Phase::Direct, &self.direct)]
    }

    /// The same, to be measured again.
    pub fn with_us_mut(&mut self) -> [(Phase, &mut Column); 3] {
        [(Phase::Load, &mut self.load), (Phase::Run, &mut self.run), (Phase::Direct, &mut self.direct)]
    }
}
