//! Servers on the host itself, the guest or Windows: no container, no engine.

use std::{
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::tcp::Destination;
use crate::{
    Namespace,
    services::{TcpService, serve_tcp, serve_udp_echo},
};

/// The socket that clients find.
#[derive(Debug)]
enum Bound {
    Tcp(Arc<TcpListener>),
    Udp(Arc<UdpSocket>),
}

/// A server that answers until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddrV4,
    stop: Arc<AtomicBool>,
    socket: Bound,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }
}

impl AsRawFd for Server {
    fn as_raw_fd(&self) -> RawFd {
        match &self.socket {
            Bound::Tcp(listener) => listener.as_raw_fd(),
            Bound::Udp(socket) => socket.as_raw_fd(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Bound::Tcp(listener) = &self.socket {
            // Ends accept(2), which nothing else does.
            let _ = SockRef::from(listener.as_ref()).shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A TCP server that sends back what it receives.
pub fn tcp_echo(namespace: &Namespace, address: impl Destination) -> Result<Server> {
    tcp(namespace, address, TcpService::Echo)
}

/// A TCP server of that kind.
pub fn tcp(namespace: &Namespace, address: impl Destination, service: TcpService) -> Result<Server> {
    let address = address.address();
    let listener = bind(namespace, address, Type::STREAM, Protocol::TCP)?;
    listener.listen(4096).with_context(|| format!("listening on TCP {address}"))?;
    let listener = Arc::new(TcpListener::from(listener));
    let stop = Arc::new(AtomicBool::new(false));
    let (theirs, stopped) = (Arc::clone(&listener), Arc::clone(&stop));
    let thread = thread::spawn(move || serve_tcp(&theirs, service, &stopped));
    Ok(Server { address, stop, socket: Bound::Tcp(listener), thread: Some(thread) })
}

/// A TCP socket that listens and never accepts: what holders of published ports do.
pub fn tcp_holder(namespace: &Namespace, address: impl Destination) -> Result<TcpListener> {
    let address = address.address();
    let socket = bind(namespace, address, Type::STREAM, Protocol::TCP)?;
    socket.listen(128).with_context(|| format!("listening on TCP {address}"))?;
    Ok(TcpListener::from(socket))
}

/// A UDP server that sends back each datagram.
pub fn udp_echo(namespace: &Namespace, address: impl Destination) -> Result<Server> {
    udp(namespace, address, None)
}

/// The same; with a number it says who it is when asked ([`crate::services::WHO`]).
pub fn udp(namespace: &Namespace, address: impl Destination, number: Option<u64>) -> Result<Server> {
    let address = address.address();
    let socket = Arc::new(UdpSocket::from(bind(namespace, address, Type::DGRAM, Protocol::UDP)?));
    let stop = Arc::new(AtomicBool::new(false));
    let (theirs, stopped) = (Arc::clone(&socket), Arc::clone(&stop));
    let thread = thread::spawn(move || serve_udp_echo(&theirs, number, &stopped));
    Ok(Server { address, stop, socket: Bound::Udp(socket), thread: Some(thread) })
}

fn bind(namespace: &Namespace, address: SocketAddrV4, kind: Type, protocol: Protocol) -> Result<Socket> {
    let bind = || {
        let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
        if kind == Type::STREAM {
            // For a server that comes back on a port with connections in TIME_WAIT.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&SockAddr::from(SocketAddr::V4(address)))?;
        Ok(socket)
    };
    namespace
        .enter(bind)
        .map_err(|error: std::io::Error| error)
        .with_context(|| format!("binding {address} in the {}", namespace.name()))
}
