//! The lock that keeps two of us apart.
//!
//! What we change hangs on a network interface, so the lock has to reach as far as the network namespace: WSL's
//! distributions share that, but neither `/run` nor bpffs. An abstract Unix socket reaches as far, but anybody
//! may bind it first, and so may anybody flock the namespace's own inode.
//!
//! sysfs has one instance for each network namespace (`kernfs_test_super` compares the namespace), whichever
//! mount namespace looks at it. So we open that instance (`fsopen`, mounted nowhere) and flock a file in it
//! that only root can open, even for reading: `bus/platform/drivers_probe`, mode 0200, on every kernel. Nothing
//! is ever written to it. The kernel drops the lock with the process, whatever becomes of that.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::exit::{Exit, Failure, OrExit as _};
use crate::wait;

const FILE: &str = "bus/platform/drivers_probe";
/// How long a command waits for another wsl-mirror: a `load` takes a tenth of a second.
const LIMIT: Duration = Duration::from_secs(20);
/// After this wait the person at the terminal is told of it.
const NOTICE: Duration = Duration::from_secs(1);

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: OwnedFd,
}

/// Whom the lock keeps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody else: for a change.
    Exclusive,
    /// Only changes: a reader sees a load before or after, not half-way.
    Shared,
}

/// Called once, when another wsl-mirror has kept us waiting for a second, with a sentence for the person at the terminal.
pub type OnWait = fn(&str);

impl Lock {
    /// Takes the lock of this network namespace; waits while another wsl-mirror holds it.
    pub fn take(access: Access, on_wait: OnWait) -> Result<Self> {
        let mut attempt = Attempt::begin(access, on_wait)?;
        match wait::poll(LIMIT, || attempt.next())? {
            Some(()) => Ok(Self { _file: attempt.file }),
            None => Err(busy(LIMIT)),
        }
    }

    /// [`Self::take`] for async callers, to change something. Dropping the future leaves nothing behind.
    pub async fn take_async(limit: Duration, on_wait: OnWait) -> Result<Self> {
        let mut attempt = Attempt::begin(Access::Exclusive, on_wait)?;
        match wait::poll_async(limit, || attempt.next()).await? {
            Some(()) => Ok(Self { _file: attempt.file }),
            None => Err(busy(limit)),
        }
    }
}

fn busy(limit: Duration) -> anyhow::Error {
    Failure::new(
        Exit::Busy,
        format!(
            "another wsl-mirror has been at work in this network namespace for more than {} s; \
             find it with `pgrep -a wsl-mirror`, in every distribution",
            limit.as_secs()
        ),
    )
}

/// One wait for the lock.
struct Attempt {
    file: OwnedFd,
    operation: FlockOperation,
    start: Instant,
    /// Taken when it was called.
    on_wait: Option<OnWait>,
}

impl Attempt {
    fn begin(access: Access, on_wait: OnWait) -> Result<Self> {
        let file = open().or_exit(Exit::Failure, || {
            format!(
                "cannot open the lock of this network namespace (sysfs, {FILE}): is CAP_SYS_ADMIN missing?"
            )
        })?;
        let operation = match access {
            Access::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Access::Shared => FlockOperation::NonBlockingLockShared,
        };
        Ok(Self { file, operation, start: Instant::now(), on_wait: Some(on_wait) })
    }

    /// Takes the lock if it is free.
    fn next(&mut self) -> Result<Option<()>> {
        match flock(&self.file, self.operation) {
            Ok(()) => return Ok(Some(())),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => {
                return Err(error).or_exit(Exit::Failure, || format!("cannot lock sysfs' {FILE}"));
            }
        }
        if self.start.elapsed() > NOTICE
            && let Some(on_wait) = self.on_wait.take()
        {
            on_wait("waiting for another wsl-mirror to finish …");
        }
        Ok(None)
    }
}

fn open() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    openat(&mount, FILE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}
