//! What IP delivers in a namespace: past routing, address translation and INPUT's rules.

use std::{io, os::fd::OwnedFd};

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, recv, sockopt};

use crate::Namespace;

/// Raw sockets that get a copy of each packet that IP hands to TCP, UDP and ICMP.
#[derive(Debug)]
pub struct Delivered([OwnedFd; 3]);

impl Delivered {
    /// Opens the sockets; from now on packets are kept until [`Delivered::take`].
    pub fn open(namespace: &Namespace) -> Result<Self> {
        let open = |protocol| -> Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(protocol))
                    .context("opening a raw socket")?;
            sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20)?;
            Ok(socket)
        };
        let open = || -> Result<_> { Ok([open(ipproto::TCP)?, open(ipproto::UDP)?, open(ipproto::ICMP)?]) };
        Ok(Self(namespace.enter(open).with_context(|| format!("in the {}", namespace.name()))?))
    }

    /// The packets that were delivered since the last call, from their IPv4 header on.
    pub fn take(&self) -> Result<Vec<Vec<u8>>> {
        let mut packets = Vec::new();
        let mut buffer = vec![0; 65_536];
        for socket in &self.0 {
            loop {
                match recv(socket, &mut buffer[..], RecvFlags::empty()) {
                    Ok((length, _)) => packets.push(buffer[..length].to_vec()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("receiving on a raw socket"),
                }
            }
        }
        Ok(packets)
    }
}
