//! Conversations with the kernel over netlink.

use std::future::Future;
use std::io;

use anyhow::{Context as _, Result, bail};
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

/// Runs one over rtnetlink to its end.
pub fn talk<T, F: Future<Output = Result<T>>>(talk: impl FnOnce(rtnetlink::Handle) -> F) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = talk(handle.clone()).await;
        // When a connection breaks, its answers end as if they were complete; `handle` keeps it from ending well.
        let broke = connection.is_finished();
        connection.abort();
        drop(handle);
        if broke {
            bail!("the netlink connection broke");
        }
        result
    })
}

/// The length of a message's header.
const HEADER: usize = 16;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A conversation in any other protocol: one question after the other.
pub struct Conversation {
    socket: Socket,
    questions: u32,
}

impl Conversation {
    /// Opens a socket of this protocol.
    pub fn begin(protocol: isize) -> Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, questions: 0 })
    }

    /// Asks for a dump or an acknowledgement, and takes the body of every message until the end of the answer.
    pub fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.questions += 1;
        self.socket.send(&message(kind, flags, self.questions, body)?, 0)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let (kind, body, next) = split(rest).context("the kernel's answer is damaged")?;
                match kind {
                    // A dump that breaks off says so in its last message.
                    ERROR | DONE => return code(body),
                    _ => take(body)?,
                }
                rest = next;
            }
        }
    }
}

/// `struct nlmsghdr` with a body. The kernel takes 0 for the sender.
fn message(kind: u16, flags: u16, number: u32, body: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(HEADER + body.len())?;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    Ok(bytes)
}

/// The type and the body of the first message, and what is behind it.
fn split(messages: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*messages.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*messages.get(4..)?.first_chunk()?);
    let body = messages.get(HEADER..length)?;
    Some((kind, body, messages.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The error that a last message names, if it does.
fn code(body: &[u8]) -> Result<()> {
    match body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes)) {
        failed @ ..0 => Err(io::Error::from_raw_os_error(failed.saturating_neg()).into()),
        _ => Ok(()),
    }
}

/// The kernel's own number for an error.
pub fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref::<io::Error>()?.raw_os_error().map(Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_where_their_headers_say() {
        let first = message(7, 1, 2, &[1, 2, 3]).unwrap();
        let both = [first.clone(), vec![0], message(DONE, 0, 2, &(-2_i32).to_ne_bytes()).unwrap()].concat();
        let (kind, body, rest) = split(&both).unwrap();
        assert_eq!((kind, body), (7, [1, 2, 3].as_slice()));
        let (kind, body, rest) = split(rest).unwrap();
        assert_eq!((kind, rest), (DONE, [].as_slice()));
        assert_eq!(errno(&code(body).unwrap_err()), Some(Errno::NOENT));
        assert!(code(&[]).is_ok() && code(&0_i32.to_ne_bytes()).is_ok());
        assert!((0..first.len()).all(|len| split(&first[..len]).is_none()));
    }
}
