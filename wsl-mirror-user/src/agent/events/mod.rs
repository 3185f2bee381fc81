//! Events: the agent listens to netlink's groups, to inotify and to signals.
//!
//! The agent ignores what a message says: messages may be late or lost. It reads the machine itself. Of sockets it takes the
//! cookies, which spare it the others.

mod event;
mod files;
mod readable;
mod sockets;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Result;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::files::Files;
use self::readable::readable;
use self::sockets::Sockets;
use crate::exit::{Exit, OrExit as _};

pub use self::event::Event;
pub use self::sockets::Told;

/// Groups of rtnetlink (`enum rtnetlink_groups`): interfaces and tc filters.
const MACHINE_GROUPS: u32 = group(1) | group(4);
/// `RTNLGRP_IPV4_ROUTE` and `RTNLGRP_IPV4_RULE`. An address brings a route.
const ROUTING_GROUPS: u32 = group(7) | group(8);
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = group(7);
/// At most so many messages are taken at once.
const MESSAGES_MAX: usize = 1000;

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// Every source of events.
pub struct Events {
    machine: AsyncFd<OwnedFd>,
    routing: AsyncFd<OwnedFd>,
    /// `None` without nftables in the kernel.
    packet_filters: Option<AsyncFd<OwnedFd>>,
    files: Files,
    sockets: Sockets,
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Events {
    /// Begins to listen.
    pub fn listen(config: &Path) -> Result<Self> {
        Ok(Self {
            machine: listen(None, MACHINE_GROUPS)
                .or_exit(Exit::Kernel, || "cannot listen to rtnetlink".into())?,
            routing: listen(None, ROUTING_GROUPS)
                .or_exit(Exit::Kernel, || "cannot listen to rtnetlink".into())?,
            packet_filters: listen(Some(netlink::NETFILTER), NFTABLES_GROUP).ok(),
            files: Files::watch(config)
                .or_exit(Exit::Kernel, || format!("cannot watch {} (inotify)", config.display()))?,
            sockets: Sockets::default(),
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one. Cancel safe: what is not waited for any more is there the next time.
    pub async fn next(&mut self) -> Result<Event> {
        let Self { machine, routing, packet_filters, files, sockets, reload, terminate, interrupt } = self;
        let filters = async {
            match packet_filters {
                Some(socket) => drain(socket).await,
                None => std::future::pending().await,
            }
        };
        // In no order: one of them that never comes to rest shall not hide the others.
        let world = async {
            tokio::select! {
                done = drain(machine) => done.map(|()| Event::Machine),
                done = drain(routing) => done.map(|()| Event::Routing),
                done = filters => done.map(|()| Event::PacketFilters),
                done = sockets.next() => done.map(|()| Event::Sockets),
                event = files.next() => event,
            }
        };
        tokio::select! {
            biased;
            _ = terminate.recv() => Ok(Event::Stop),
            _ = interrupt.recv() => Ok(Event::Stop),
            _ = reload.recv() => Ok(Event::Reload),
            event = world => Ok(event?),
        }
    }

    /// Opens the ring of sockets that is pinned now; says whether it is another one.
    pub fn open_sockets(&mut self) -> Result<bool> {
        self.sockets.open()
    }

    /// The sockets that were told of since the last time.
    pub fn take_sockets(&mut self) -> Told {
        self.sockets.take()
    }

    /// Tries to watch the configuration's folder again, if that went away; says whether it does.
    pub fn watch_again(&mut self) -> bool {
        !self.files.watches_folder() && self.files.watch_folder()
    }
}

/// rtnetlink is protocol 0, which is `None`.
fn listen(protocol: Option<Protocol>, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    readable(socket)
}

/// Waits for a message, and takes all that are there with it.
async fn drain(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = socket.readable().await?;
    let mut message = [0_u8; 64];
    for _ in 0..MESSAGES_MAX {
        match recv(socket.get_ref(), message.as_mut_slice(), RecvFlags::TRUNC) {
            // That some were lost says as much as they would have said.
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                ready.clear_ready();
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::files::tests::Folder;
    use super::*;

    #[tokio::test]
    async fn a_restless_source_does_not_hide_the_others() {
        let folder = Folder::new("fair");
        let pair = || UnixDatagram::pair().unwrap();
        let ((restless, machine), (routes, routing), (filters, packet_filters)) = (pair(), pair(), pair());
        for socket in [&machine, &routing, &packet_filters] {
            socket.set_nonblocking(true).unwrap();
        }
        let mut events = Events {
            machine: readable(machine.into()).unwrap(),
            routing: readable(routing.into()).unwrap(),
            packet_filters: Some(readable(packet_filters.into()).unwrap()),
            files: Files::watch(&folder.config()).unwrap(),
            sockets: Sockets::default(),
            reload: signal(SignalKind::hangup()).unwrap(),
            terminate: signal(SignalKind::terminate()).unwrap(),
            interrupt: signal(SignalKind::interrupt()).unwrap(),
        };
        filters.send(b"a rule").unwrap();
        routes.send(b"a route").unwrap();
        fs::write(folder.config(), "").unwrap();
        let mut heard = Vec::new();
        for _ in 0..50 {
            restless.send(b"an interface").unwrap();
            // A round takes its time, in which the runtime sees what has come.
            tokio::time::sleep(Duration::from_millis(1)).await;
            heard.push(events.next().await.unwrap());
        }
        for event in [Event::Routing, Event::PacketFilters, Event::Config] {
            assert!(heard.contains(&event), "{event:?} was never heard of");
        }
    }
}
