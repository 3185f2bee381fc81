//! Who answers, and which address it sees as its client's.

use std::{
    io::Write as _,
    net::{SocketAddrV4, TcpStream, UdpSocket},
};

use crate::{services::WHO, tcp, udp};

/// A named service's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its number.
    pub number: u64,
    /// Its client.
    pub client: SocketAddrV4,
}

impl Who {
    /// Of the answer.
    pub fn read(answer: &[u8]) -> Option<Self> {
        let (number, client) = str::from_utf8(answer).ok()?.trim_end().split_once(' ')?;
        Some(Self { number: number.parse().ok()?, client: client.parse().ok()? })
    }
}

/// Asks over a connection of its own.
pub fn who(client: &tcp::Client) -> Result<Who, tcp::Failure> {
    who_over(&mut client.connect()?)
}

/// Asks over this connection.
pub fn who_over(stream: &mut TcpStream) -> Result<Who, tcp::Failure> {
    stream.write_all(WHO).map_err(|error| tcp::Failure::Other(error.to_string()))?;
    let answer = tcp::read_line(stream)?;
    Who::read(&answer).ok_or_else(|| tcp::Failure::Other(format!("no name: {answer:?}")))
}

/// Asks by a datagram from a socket of its own.
pub fn who_udp(client: &udp::Client) -> Result<Who, udp::Failure> {
    who_from(&client.connect()?)
}

/// Asks by a datagram from this socket.
pub fn who_from(socket: &UdpSocket) -> Result<Who, udp::Failure> {
    let answer = udp::ask(socket, WHO)?;
    Who::read(&answer).ok_or(udp::Failure::Corrupt(answer))
}
