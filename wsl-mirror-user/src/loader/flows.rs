//! The end of carried flows: their sockets, then their conntrack entries.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_sock_diag::constants::SOCK_DESTROY;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_SOCK_DIAG};
use rustix::io::Errno;
use wsl_mirror_core::abi::Protocol;

use crate::host::conntrack::{self, Entry, FAMILY, SUBSYSTEM, Tuple};
use crate::host::netlink::{Conversation, errno};
use crate::host::sockets::{self, Connection};

/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = SUBSYSTEM | 2;

/// The flows that are carried by an alias: steered ones, and direct ones, which come from the source alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flows {
    entries: Vec<Entry>,
    source_alias: Ipv4Addr,
}

impl Flows {
    /// Those of these aliases. Entries on the alias that do not translate were made by stray packets.
    pub fn read(alias: Ipv4Addr, source_alias: Ipv4Addr) -> Result<Self> {
        let mut entries = conntrack::entries_to(alias).context("cannot list conntrack's entries")?;
        entries.retain(|entry| entry.is_translated);
        Ok(Self { entries, source_alias })
    }

    /// How many of them go on.
    pub fn count(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.is_over).count()
    }

    /// Destroys the listeners' ends of steered TCP flows: each end sends a reset, which the egress program translates. The
    /// other end of a direct flow is the container's.
    pub fn destroy_sockets(&self) -> Result<()> {
        let steered = self.entries.iter().filter(|entry| entry.original.source.0 != self.source_alias);
        let replies: HashSet<Tuple> =
            steered.filter(|entry| entry.protocol == Protocol::Tcp).map(|entry| entry.reply).collect();
        if replies.is_empty() {
            return Ok(());
        }
        let mut conversation = Conversation::begin(NETLINK_SOCK_DIAG)?;
        for connection in sockets::connections()? {
            if tuple(&connection).is_some_and(|tuple| replies.contains(&tuple)) {
                match destroy(&mut conversation, &connection) {
                    // The socket has gone meanwhile.
                    Err(error) if errno(&error) == Some(Errno::NOENT) => {}
                    Err(error) if errno(&error) == Some(Errno::OPNOTSUPP) => {
                        bail!("this kernel resets no connection for us (CONFIG_INET_DIAG_DESTROY is not set)")
                    }
                    done => done.context("cannot destroy a socket")?,
                }
            }
        }
        Ok(())
    }

    /// Deletes the entries.
    pub fn delete_entries(&self) -> Result<()> {
        let mut conversation = Conversation::begin(NETLINK_NETFILTER)?;
        for entry in &self.entries {
            let body = [FAMILY.as_slice(), &conntrack::key(entry)].concat();
            match conversation.ask(DELETE, NLM_F_REQUEST | NLM_F_ACK, &body, |_| Ok(())) {
                // The entry has gone meanwhile.
                Err(error) if errno(&error) == Some(Errno::NOENT) => {}
                done => done.context("cannot delete a conntrack entry")?,
            }
        }
        Ok(())
    }
}

/// Ends a connection with a reset, and with ECONNABORTED for the process that has it.
///
/// The request names the socket's cookie: by addresses alone the kernel takes the listener if the connection is gone.
fn destroy(conversation: &mut Conversation, connection: &Connection) -> Result<()> {
    conversation.ask(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &connection.request(), |_| Ok(()))
}

/// What a connection sends from and to, in conntrack's words. A listener on `[::]` has IPv4 addresses in IPv6's form.
fn tuple(connection: &Connection) -> Option<Tuple> {
    let ipv4 = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    let (local, remote) = (connection.local(), connection.remote());
    Some(Tuple { source: (ipv4(local.0)?, local.1), destination: (ipv4(remote.0)?, remote.1) })
}
