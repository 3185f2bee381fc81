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
use crate::output;

const FILE: &str = "bus/platform/drivers_probe";
/// How long we wait for another one of us: a `load` takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(5);

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: OwnedFd,
}

impl Lock {
    /// Takes the lock of this network namespace, to change something; waits while another one of us has it.
    pub fn take() -> Result<Self> {
        Self::take_by(FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes it to read what nobody shall change meanwhile: a load is seen before or after, not half-way.
    pub fn take_shared() -> Result<Self> {
        Self::take_by(FlockOperation::NonBlockingLockShared)
    }

    fn take_by(operation: FlockOperation) -> Result<Self> {
        let mut wait = Wait::begin(operation, PATIENCE)?;
        while !wait.is_over()? {
            std::thread::sleep(RETRY);
        }
        Ok(Self { _file: wait.file })
    }

    /// [`Self::take`] for who has something else to look at meanwhile. To wait no more leaves nothing behind.
    pub async fn wait(patience: Duration) -> Result<Self> {
        let mut wait = Wait::begin(FlockOperation::NonBlockingLockExclusive, patience)?;
        while !wait.is_over()? {
            tokio::time::sleep(RETRY).await;
        }
        Ok(Self { _file: wait.file })
    }
}

/// Somebody waits for it.
struct Wait {
    file: OwnedFd,
    operation: FlockOperation,
    start: Instant,
    patience: Duration,
    told: bool,
}

impl Wait {
    fn begin(operation: FlockOperation, patience: Duration) -> Result<Self> {
        let file = open().or_exit(Exit::Failure, || {
            format!(
                "cannot open the lock of this network namespace (sysfs, {FILE}): is CAP_SYS_ADMIN missing?"
            )
        })?;
        Ok(Self { file, operation, start: Instant::now(), patience, told: false })
    }

    /// Takes the lock if it is free, and says whether it was; fails once that takes too long.
    fn is_over(&mut self) -> Result<bool> {
        match flock(&self.file, self.operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => {
                return Err(error).or_exit(Exit::Failure, || format!("cannot lock sysfs' {FILE}"));
            }
        }
        if self.start.elapsed() > self.patience {
            return Err(Failure::new(
                Exit::Busy,
                format!(
                    "another wsl-mirror has been at work in this network namespace for more than {} s; \
                     find it with `pgrep -a wsl-mirror`, in every distribution",
                    self.patience.as_secs()
                ),
            ));
        }
        if !self.told && self.start.elapsed() > Duration::from_secs(1) {
            output::note("waiting for another wsl-mirror to finish …");
            self.told = true;
        }
        Ok(false)
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
