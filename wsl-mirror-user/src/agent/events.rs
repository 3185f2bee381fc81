//! What tells that the world has changed, without asking: netlink's groups, inotify, signals.
//!
//! What a message says is not looked at. It may be late, and some may be lost; what is so is read from the world itself.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, OrExit as _};
use crate::loader::delivery::sysctls;

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
        // In no order: one of them that never comes to rest shall not hide the others.
        let world = async {
            tokio::select! {
                done = drain(machine) => done.map(|()| Event::Machine),
                done = filters => done.map(|()| Event::PacketFilters),
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

    /// Tries to watch the configuration's folder again, if that went away; says whether it does.
    pub fn watch_again(&mut self) -> bool {
        self.files.folder.is_none() && self.files.watch_folder()
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
    config: PathBuf,
    /// `None` while there is no such folder.
    folder: Option<i32>,
}

/// What inotify has told of.
struct Told {
    watch: i32,
    flags: ReadFlags,
    name: Option<OsString>,
}

impl Files {
    fn watch(config: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let folder = add_folder(&inotify, config)?;
        // Netlink tells of some of them only (`devinet_conf_proc`). inotify sees those who write by the same mount of
        // /proc, which other distributions do not.
        for path in sysctls::files() {
            // Where there is none, none can change.
            let _ = inotify::add_watch(&inotify, path.as_str(), WatchFlags::MODIFY);
        }
        Ok(Self { inotify: readable(inotify)?, config: config.to_owned(), folder: Some(folder) })
    }

    fn watch_folder(&mut self) -> bool {
        self.folder = add_folder(self.inotify.get_ref(), &self.config).ok();
        self.folder.is_some()
    }

    async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match read(self.inotify.get_ref()) {
                Ok(told) => {
                    if let Some(event) = self.all_in_all(&told) {
                        return Ok(event);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What all that was told comes to. That the configuration has changed includes a look at the machine.
    fn all_in_all(&mut self, told: &[Told]) -> Option<Event> {
        let events: Vec<Event> = told.iter().filter_map(|told| self.means(told)).collect();
        let config = events.iter().copied().find(|event| *event == Event::Config);
        config.or_else(|| events.first().copied())
    }

    fn means(&mut self, told: &Told) -> Option<Event> {
        // Some were lost, whatever they were.
        if told.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Some(Event::Config);
        }
        if self.folder != Some(told.watch) {
            // A watch that ends tells of its end, too.
            return (!told.flags.contains(ReadFlags::IGNORED)).then_some(Event::Machine);
        }
        if told.flags.intersects(ReadFlags::MOVE_SELF | ReadFlags::IGNORED) {
            if told.flags.contains(ReadFlags::MOVE_SELF) {
                // Another one may be in its place by now.
                let _ = inotify::remove_watch(self.inotify.get_ref(), told.watch);
            }
            self.watch_folder();
            return Some(Event::Config);
        }
        let is_config = told.name.as_deref() == self.config.file_name();
        // What is made to be written is told of again once it is; a link is all there is of it.
        let is_done = !told.flags.contains(ReadFlags::CREATE) || is_link(&self.config);
        (is_config && is_done).then_some(Event::Config)
    }
}

fn add_folder(inotify: &OwnedFd, config: &Path) -> io::Result<i32> {
    let written =
        WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
    let flags = written | WatchFlags::CREATE | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
    let folder = config.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(inotify::add_watch(inotify, folder.unwrap_or(Path::new(".")), flags)?)
}

/// Whether it is a link, of either kind.
fn is_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_symlink() || found.nlink() > 1)
}

/// All that can be read at once.
fn read(inotify: &OwnedFd) -> rustix::io::Result<Vec<Told>> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let mut told = Vec::new();
    loop {
        let event = reader.next()?;
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
        told.push(Told { watch: event.wd(), flags: event.events(), name });
        if reader.is_buffer_empty() {
            return Ok(told);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::*;

    /// A folder of its own, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("wsl-mirror-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn config(&self) -> PathBuf {
            self.0.join("config")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What has been told of until now: whether the configuration was part of it.
    fn hears_of_config(files: &mut Files) -> bool {
        let mut heard = false;
        while let Ok(told) = read(files.inotify.get_ref()) {
            heard |= files.all_in_all(&told) == Some(Event::Config);
        }
        heard
    }

    #[tokio::test]
    async fn a_configuration_is_heard_of_however_it_comes_to_be_there() {
        let folder = Folder::new("comes");
        let (config, other) = (folder.config(), folder.0.join("other"));
        let mut files = Files::watch(&config).unwrap();
        fs::write(&other, "").unwrap();
        assert!(!hears_of_config(&mut files));
        fs::hard_link(&other, &config).unwrap();
        assert!(hears_of_config(&mut files), "ln");
        fs::remove_file(&config).unwrap();
        assert!(hears_of_config(&mut files), "rm");
        std::os::unix::fs::symlink(&other, &config).unwrap();
        assert!(hears_of_config(&mut files), "ln -s");
        fs::rename(&other, &config).unwrap();
        assert!(hears_of_config(&mut files), "mv");
        fs::remove_file(&config).unwrap();
        assert!(hears_of_config(&mut files));
        let file = fs::File::create(&config).unwrap();
        assert!(!hears_of_config(&mut files), "there is nothing in it yet");
        drop(file);
        assert!(hears_of_config(&mut files), "written");
    }

    #[tokio::test]
    async fn a_configuration_that_is_lost_among_too_many_messages_is_heard_of() {
        let folder = Folder::new("many");
        let mut files = Files::watch(&folder.config()).unwrap();
        let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let others = [folder.0.join("one"), folder.0.join("other")];
        // Of one and the same message, inotify keeps one.
        for count in 0..most.trim().parse::<usize>().unwrap() {
            fs::write(&others[count % 2], "").unwrap();
        }
        fs::write(folder.config(), "").unwrap();
        assert!(hears_of_config(&mut files));
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_watched_again() {
        let folder = Folder::new("replaced");
        let inner = folder.0.join("inner");
        let config = inner.join("config");
        fs::create_dir(&inner).unwrap();
        let mut files = Files::watch(&config).unwrap();
        fs::rename(&inner, folder.0.join("old")).unwrap();
        fs::create_dir(&inner).unwrap();
        assert!(hears_of_config(&mut files), "moved away");
        fs::write(&config, "").unwrap();
        assert!(hears_of_config(&mut files), "in the new one");
        fs::remove_dir_all(&inner).unwrap();
        assert!(hears_of_config(&mut files), "removed");
        assert!(!files.watch_folder(), "there is none");
        fs::create_dir(&inner).unwrap();
        assert!(files.watch_folder());
        fs::write(&config, "").unwrap();
        assert!(hears_of_config(&mut files), "in the newest one");
    }

    #[tokio::test]
    async fn what_never_comes_to_rest_does_not_hide_the_others() {
        let folder = Folder::new("fair");
        let pair = || UnixDatagram::pair().unwrap();
        let ((restless, machine), (filters, packet_filters)) = (pair(), pair());
        for socket in [&machine, &packet_filters] {
            socket.set_nonblocking(true).unwrap();
        }
        let mut events = Events {
            machine: readable(machine.into()).unwrap(),
            packet_filters: Some(readable(packet_filters.into()).unwrap()),
            files: Files::watch(&folder.config()).unwrap(),
            reload: signal(SignalKind::hangup()).unwrap(),
            terminate: signal(SignalKind::terminate()).unwrap(),
            interrupt: signal(SignalKind::interrupt()).unwrap(),
        };
        filters.send(b"a rule").unwrap();
        fs::write(folder.config(), "").unwrap();
        let mut heard = Vec::new();
        for _ in 0..50 {
            restless.send(b"an interface").unwrap();
            // A round takes its time, in which the runtime sees what has come.
            tokio::time::sleep(Duration::from_millis(1)).await;
            heard.push(events.next().await.unwrap());
        }
        for event in [Event::PacketFilters, Event::Config] {
            assert!(heard.contains(&event), "{event:?} was never heard of");
        }
    }
}
