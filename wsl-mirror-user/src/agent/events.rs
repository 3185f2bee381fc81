//! What tells that the world has changed, without asking: netlink's groups, inotify, signals.
//!
//! What a message says is not looked at. It may be late, and some may be lost; what is so is read from the world itself.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, OrExit as _};
use crate::host::delivery::sysctls;

/// Groups of rtnetlink (`enum rtnetlink_groups`): interfaces, tc filters, IPv4's policy rules and per-interface sysctls.
const ROUTE_GROUPS: u32 = group(1) | group(4) | group(8) | group(24);
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = group(7);
/// Most messages that are taken at once.
const BURST: usize = 1000;

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// To interfaces, policy rules or sysctls.
    Machine,
    /// To nftables.
    PacketFilters,
    /// To the configuration.
    Config,
    /// SIGHUP.
    Reload,
    /// SIGTERM, SIGINT.
    Stop,
}

/// Everything that is listened to.
pub struct Events {
    machine: AsyncFd<OwnedFd>,
    /// Not there without nftables in the kernel.
    packet_filters: Option<AsyncFd<OwnedFd>>,
    files: Files,
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Events {
    /// Begins to listen.
    pub fn listen(config: &Path) -> Result<Self> {
        Ok(Self {
            machine: listen(None, ROUTE_GROUPS)
                .or_exit(Exit::Kernel, || "cannot listen to rtnetlink".into())?,
            packet_filters: listen(Some(netlink::NETFILTER), NFTABLES_GROUP).ok(),
            files: Files::watch(config)
                .or_exit(Exit::Kernel, || format!("cannot watch {} (inotify)", config.display()))?,
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one. Cancel safe: what is not waited for any more is there the next time.
    pub async fn next(&mut self) -> Result<Event> {
        let Self { machine, packet_filters, files, reload, terminate, interrupt } = self;
        let filters = async {
            match packet_filters {
                Some(socket) => drain(socket).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = terminate.recv() => Ok(Event::Stop),
            _ = interrupt.recv() => Ok(Event::Stop),
            _ = reload.recv() => Ok(Event::Reload),
            done = drain(machine) => Ok(done.map(|()| Event::Machine)?),
            done = filters => Ok(done.map(|()| Event::PacketFilters)?),
            event = files.next() => Ok(event?),
        }
    }
}

/// rtnetlink is protocol 0, which is `None`.
fn listen(protocol: Option<Protocol>, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    readable(socket)
}

fn readable(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor stays open and the same for as long as it is in there.
    Ok(unsafe { AsyncFd::register_with_interest(file, tokio::io::Interest::READABLE) }?)
}

/// Waits for a message, and takes all that are there with it.
async fn drain(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = socket.readable().await?;
    let mut message = [0_u8; 64];
    for _ in 0..BURST {
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

/// Files that are watched. The folder of the configuration, for editors put a new file in the place of the old one.
struct Files {
    inotify: AsyncFd<OwnedFd>,
    folder: i32,
    name: OsString,
}

impl Files {
    fn watch(config: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let written =
            WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        let folder = config.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = folder.map_or_else(|| PathBuf::from("."), Path::to_owned);
        let folder = inotify::add_watch(&inotify, &folder, written | WatchFlags::ONLYDIR)?;
        // Netlink tells of some of them only (`devinet_conf_proc`). inotify sees those who write by the same mount of
        // /proc, which other distributions do not.
        for path in sysctls::files() {
            // Where there is none, none can change.
            let _ = inotify::add_watch(&inotify, path.as_str(), WatchFlags::MODIFY);
        }
        let name = config.file_name().unwrap_or_default().to_owned();
        Ok(Self { inotify: readable(inotify)?, folder, name })
    }

    async fn next(&self) -> io::Result<Event> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match self.read() {
                Ok(Some(event)) => return Ok(event),
                Ok(None) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What all that can be read at once comes to. That the configuration has changed includes a look at the machine.
    fn read(&self) -> rustix::io::Result<Option<Event>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        let mut found = None;
        loop {
            let event = reader.next()?;
            let is_config = event.file_name().is_some_and(|name| name.to_bytes() == self.name.as_bytes());
            match (event.wd() == self.folder, is_config) {
                (false, _) => found = found.or(Some(Event::Machine)),
                (true, true) => found = Some(Event::Config),
                (true, false) => {}
            }
            if reader.is_buffer_empty() {
                return Ok(found);
            }
        }
    }
}
