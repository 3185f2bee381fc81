//! The services that scenarios talk to, and the content they are checked by. std only: `helper/main.rs`
//! includes this file, so that a server in a container and one in a namespace behave the same.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// What a TCP service does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpService {
    /// Sends back what it receives, and closes its side when the client closes its own.
    Echo,
    /// Checks what it receives against the [`Pattern`] and at its end answers `OK <bytes>` or `BAD <offset>`.
    Sink,
    /// Sends that many bytes of the [`Pattern`], then closes.
    Source {
        /// How many.
        bytes: u64,
    },
    /// As [`TcpService::Echo`], but answers [`WHO`] with its number and the client's address, `7 172.17.0.1:40000\n`.
    Named {
        /// The number.
        number: u64,
    },
}

/// The request that named services answer with who they are.
pub const WHO: &[u8] = b"who?";

/// What a named service answers to [`WHO`].
fn who(number: u64, client: SocketAddr) -> Vec<u8> {
    format!("{number} {client}\n").into_bytes()
}

/// A stream in which every byte depends on its position: bytes lost, doubled or swapped show, and where.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pattern {
    offset: u64,
}

impl Pattern {
    /// Fills `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut done = 0;
        while done < buffer.len() {
            let word = splitmix64(self.offset / 8).to_le_bytes();
            let from = usize::from(self.offset.to_le_bytes()[0] % 8);
            let take = (8 - from).min(buffer.len() - done);
            buffer[done..done + take].copy_from_slice(&word[from..from + take]);
            done += take;
            self.offset += take as u64;
        }
    }

    /// Takes `bytes` for the next ones; else the position in the stream of the first wrong byte.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), u64> {
        let start = self.offset;
        let mut expected = vec![0; bytes.len()];
        self.fill(&mut expected);
        match expected.iter().zip(bytes).position(|(expected, got)| expected != got) {
            None => Ok(()),
            Some(index) => Err(start + index as u64),
        }
    }

    /// How many bytes were made or checked.
    pub fn position(self) -> u64 {
        self.offset
    }

    /// Writes the next `bytes` bytes to `writer`.
    pub fn write(&mut self, writer: &mut impl Write, bytes: u64) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            self.fill(&mut buffer[..take]);
            writer.write_all(&buffer[..take])?;
            left -= take as u64;
        }
        Ok(())
    }
}

const CHUNK: usize = 64 * 1024;

fn splitmix64(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Accepts until `stop` is set and the listener shut down; each connection has a thread of its own.
pub fn serve_tcp(listener: &TcpListener, service: TcpService, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                // A connection that fails is the client's to notice and to judge.
                thread::spawn(move || {
                    let _ = serve_connection(stream, service);
                });
            }
            // Out of descriptors, or an aborted connection: no reason to end the service or to spin.
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn serve_connection(mut stream: TcpStream, service: TcpService) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; CHUNK];
    match service {
        TcpService::Echo => loop {
            match stream.read(&mut buffer)? {
                0 => return stream.shutdown(Shutdown::Write),
                length => stream.write_all(&buffer[..length])?,
            }
        },
        TcpService::Sink => {
            let mut pattern = Pattern::default();
            let mut verdict = Ok(());
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    length => verdict = verdict.and_then(|()| pattern.check(&buffer[..length])),
                }
            }
            let answer = match verdict {
                Ok(()) => format!("OK {}\n", pattern.position()),
                Err(offset) => format!("BAD {offset}\n"),
            };
            stream.write_all(answer.as_bytes())
        }
        TcpService::Source { bytes } => Pattern::default().write(&mut stream, bytes),
        TcpService::Named { number } => {
            let client = stream.peer_addr()?;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.shutdown(Shutdown::Write),
                    length if &buffer[..length] == WHO => stream.write_all(&who(number, client))?,
                    length => stream.write_all(&buffer[..length])?,
                }
            }
        }
    }
}

/// Sends each datagram back to where it came from, until `stop` is set. With a number, [`WHO`] is answered as a
/// [`TcpService::Named`] does.
pub fn serve_udp_echo(socket: &UdpSocket, number: Option<u64>, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    let _ = socket.set_read_timeout(Some(Duration::from_millis(50)));
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = match number {
                Some(number) if &buffer[..length] == WHO => socket.send_to(&who(number, from), from),
                _ => socket.send_to(&buffer[..length], from),
            };
        }
    }
}
