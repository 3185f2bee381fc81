//! The ports that `sock_diag` shows in the guest.

use std::{collections::BTreeSet, io};

use anyhow::{Result, bail};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::transport::Transport;
use crate::Namespace;

/// `TCP_TIME_WAIT` (`include/net/tcp_states.h`).
const TIME_WAIT: u8 = 6;

/// Which sockets hold a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holding {
    /// In any state: WSL's tracker asks `sock_diag` for all (`idiag_states = ~0`). From Linux 6.8 on these include TCP
    /// sockets that are bound and do not listen.
    Any,
    /// Without those in `TIME_WAIT`.
    Alive,
}

/// A netlink socket in the guest.
pub(super) struct Diagnosis(Socket);

impl Diagnosis {
    pub(super) fn open(guest: &Namespace) -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Self(guest.enter(open)?))
    }

    /// Every port that a socket has as its own, as keys of the map `PORTS`.
    pub(super) fn ports(&self, holding: Holding) -> Result<BTreeSet<u32>> {
        let mut ports = BTreeSet::new();
        for transport in Transport::BOTH {
            for family in [AF_INET, AF_INET6] {
                self.dump(family, transport.number(), |port, state| {
                    if holding == Holding::Any || state != TIME_WAIT {
                        ports.insert(transport.key(port));
                    }
                })?;
            }
        }
        Ok(ports)
    }

    fn dump(&self, family: u8, protocol: u8, mut take: impl FnMut(u16, u8)) -> Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family,
            protocol,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::from_bits_retain(!0),
            socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
        };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)?;
                let length = usize::try_from(message.header.length)?.next_multiple_of(4);
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                        take(response.header.socket_id.source_port, response.header.state);
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code).into());
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                    other => bail!("unexpected answer: {other:?}"),
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}
