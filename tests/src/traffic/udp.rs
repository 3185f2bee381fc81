//! UDP clients.

use std::{
    fmt,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Result;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{maker::Maker, tcp::Destination};

pub use super::tcp::limit;
use crate::Namespace;

/// How a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No reply.
    TimedOut,
    /// An ICMP error instead of a reply.
    Refused,
    /// A reply with other content.
    Corrupt(Vec<u8>),
    /// Whatever else the kernel said.
    Other(String),
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => write!(f, "no reply"),
            Self::Refused => write!(f, "refused by an ICMP error"),
            Self::Corrupt(reply) => write!(f, "another reply than was sent: {} bytes", reply.len()),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// A client of an echo service. Its socket is connected, as a resolver's is: a reply from another address or
/// port than was asked is none.
#[derive(Debug, Clone)]
pub struct Client {
    namespace: Namespace,
    to: SocketAddrV4,
    from: Option<SocketAddrV4>,
    limit: Duration,
    maker: Option<Maker>,
}

impl Client {
    /// A client in `namespace`.
    pub fn new(namespace: &Namespace, to: impl Destination) -> Self {
        Self { namespace: namespace.clone(), to: to.address(), from: None, limit: limit(), maker: None }
    }

    /// Has somebody else make the sockets.
    #[must_use]
    pub fn made_by(mut self, maker: Maker) -> Self {
        self.maker = Some(maker);
        self
    }

    /// From this port of 127.0.0.1.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        self.from((Ipv4Addr::LOCALHOST, port))
    }

    /// From this address and port.
    #[must_use]
    pub fn from(mut self, from: impl Destination) -> Self {
        self.from = Some(from.address());
        self
    }

    /// How long a reply may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The socket, connected.
    pub fn connect(&self) -> Result<UdpSocket, Failure> {
        let connect = || -> Result<UdpSocket> {
            let socket = match &self.maker {
                Some(maker) => maker.make()?,
                None => {
                    self.namespace.enter(|| Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)))?
                }
            };
            if let Some(from) = self.from {
                socket.set_reuse_address(true)?;
                socket.bind(&SockAddr::from(from))?;
            }
            socket.connect(&SockAddr::from(self.to))?;
            socket.set_read_timeout(Some(self.limit))?;
            Ok(UdpSocket::from(socket))
        };
        connect().map_err(|error| Failure::Other(format!("{error:#}")))
    }

    /// Sends one datagram and gives the reply, which is right.
    pub fn request(&self, request: &[u8]) -> Result<Vec<u8>, Failure> {
        exchange(&self.connect()?, request)
    }

    /// Sends one datagram and gives any reply: the servers of tests answer with their name.
    pub fn ask(&self, request: &[u8]) -> Result<Vec<u8>, Failure> {
        ask(&self.connect()?, request)
    }

    /// How long one request and its reply take.
    pub fn round_trip(&self, request: &[u8]) -> Result<Duration, Failure> {
        let socket = self.connect()?;
        let started = Instant::now();
        exchange(&socket, request).map(|_| started.elapsed())
    }
}

/// One request over a connected socket, and its right reply.
pub fn exchange(socket: &UdpSocket, request: &[u8]) -> Result<Vec<u8>, Failure> {
    let reply = ask(socket, request)?;
    if reply == request { Ok(reply) } else { Err(Failure::Corrupt(reply)) }
}

/// One request over a connected socket, and any reply.
pub fn ask(socket: &UdpSocket, request: &[u8]) -> Result<Vec<u8>, Failure> {
    let failure = |error: std::io::Error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::TimedOut,
        ErrorKind::ConnectionRefused => Failure::Refused,
        _ => Failure::Other(error.to_string()),
    };
    socket.send(request).map_err(failure)?;
    let mut reply = vec![0; 65_536];
    let length = socket.recv(&mut reply).map_err(failure)?;
    reply.truncate(length);
    Ok(reply)
}
