//! Changes of the configuration, by inotify.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::event::Event;
use super::readable::readable;

/// Files that are watched. The folder of the configuration, for editors put a new file in the place of the old one.
pub struct Files {
    inotify: AsyncFd<OwnedFd>,
    config: PathBuf,
    /// `None` while there is no such folder.
    folder: Option<i32>,
}

/// A message of inotify.
struct Message {
    watch: i32,
    flags: ReadFlags,
    name: Option<OsString>,
}

impl Files {
    /// Watches the configuration.
    pub fn watch(config: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let folder = add_folder(&inotify, config)?;
        Ok(Self { inotify: readable(inotify)?, config: config.to_owned(), folder: Some(folder) })
    }

    /// Whether the configuration's folder is watched; not while there is no such folder.
    pub const fn watches_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// Watches the configuration's folder, if there is one now.
    pub fn watch_folder(&mut self) -> bool {
        self.folder = add_folder(self.inotify.get_ref(), &self.config).ok();
        self.folder.is_some()
    }

    /// Waits for the next change.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match read(self.inotify.get_ref()) {
                Ok(messages) => {
                    if let Some(event) = self.sum_up(&messages) {
                        return Ok(event);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The event that all messages come to. A change of the configuration includes a look at the machine.
    fn sum_up(&mut self, messages: &[Message]) -> Option<Event> {
        let events: Vec<Event> = messages.iter().filter_map(|message| self.meaning(message)).collect();
        let config = events.iter().copied().find(|event| *event == Event::Config);
        config.or_else(|| events.first().copied())
    }

    fn meaning(&mut self, message: &Message) -> Option<Event> {
        // Some were lost, whatever they were.
        if message.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Some(Event::Config);
        }
        if self.folder != Some(message.watch) {
            // A watch that ends tells of its end, too.
            return (!message.flags.contains(ReadFlags::IGNORED)).then_some(Event::Machine);
        }
        if message.flags.intersects(ReadFlags::MOVE_SELF | ReadFlags::IGNORED) {
            if message.flags.contains(ReadFlags::MOVE_SELF) {
                // Another one may be in its place by now.
                let _ = inotify::remove_watch(self.inotify.get_ref(), message.watch);
            }
            self.watch_folder();
            return Some(Event::Config);
        }
        let is_config = message.name.as_deref() == self.config.file_name();
        // What is made to be written is told of again once it is; a link is all there is of it.
        let is_done = !message.flags.contains(ReadFlags::CREATE) || is_link(&self.config);
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
fn read(inotify: &OwnedFd) -> rustix::io::Result<Vec<Message>> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let mut messages = Vec::new();
    loop {
        let event = reader.next()?;
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
        messages.push(Message { watch: event.wd(), flags: event.events(), name });
        if reader.is_buffer_empty() {
            return Ok(messages);
        }
    }
}

#[cfg(test)]
pub mod tests;
