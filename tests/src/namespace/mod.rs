//! A network namespace without a name, with or without mounts of its own.
//!
//! Nothing but descriptors holds it: when this process dies, in whatever way, and with it the processes that
//! it started inside, the kernel takes the namespace down and everything in it: links, rules, pinned objects,
//! files.

mod mounts;

use std::{
    env,
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    panic,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use rustix::{
    net::{AddressFamily, SocketType},
    process::{Signal, getpid, getppid, set_parent_process_death_signal},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

pub use mounts::SCRATCH;
pub(crate) use mounts::{HELPER_PATH, Mounts, install_helper};

use crate::process::{COMMAND_LIMIT, Finished, run, run_with_input};

/// A network namespace, and for the guest its mount namespace. Cheap to clone; the last clone to go takes the
/// namespace with it.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: &'static str,
    net: Arc<OwnedFd>,
    mount: Option<Arc<OwnedFd>>,
}

impl Namespace {
    /// A fresh network namespace; with `mounts`, also a fresh mount namespace. `name` is for messages only.
    pub(crate) fn new(name: &'static str, mounts: Option<Mounts>) -> Result<Self> {
        Self::make(name, None, mounts)
    }

    /// The same network namespace under a mount namespace of its own: what another distribution is on WSL.
    pub(crate) fn with_other_mounts(&self, name: &'static str, mounts: Mounts) -> Result<Self> {
        Self::make(name, Some(Arc::clone(&self.net)), Some(mounts))
    }

    fn make(name: &'static str, net: Option<Arc<OwnedFd>>, mounts: Option<Mounts>) -> Result<Self> {
        let make = || -> Result<Self> {
            match &net {
                Some(net) => move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("entering its network namespace")?,
                None => unshare(UnshareFlags::NEWNET).context("making a network namespace")?,
            }
            let mount = match mounts {
                None => None,
                Some(mounts) => {
                    unshare(UnshareFlags::NEWNS | UnshareFlags::FS).context("making a mount namespace")?;
                    mounts.mount_all()?;
                    Some(Arc::new(open_own_namespace("mnt")?))
                }
            };
            let net = match net {
                Some(net) => net,
                None => Arc::new(open_own_namespace("net")?),
            };
            Ok(Self { name, net, mount })
        };
        on_fresh_thread(name, make)
            .with_context(|| format!("setting up the namespace of the {name} (as root?)"))
    }

    /// What messages call it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The network namespace.
    pub fn netns_fd(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// The mount namespace, for the guest.
    pub fn mountns_fd(&self) -> Option<BorrowedFd<'_>> {
        self.mount.as_ref().map(|mount| mount.as_fd())
    }

    /// Runs `work` inside, on a thread of its own. A socket made there stays in the namespace wherever it is
    /// used afterwards.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_fresh_thread(self.name, || {
            let entered =
                unshare(UnshareFlags::FS).and_then(|()| Self::join(&self.net, self.mount.as_deref()));
            if let Err(error) = entered {
                panic!("entering the namespace of the {}: {error}", self.name);
            }
            work()
        })
    }

    /// A command that runs inside, in the caller's working directory.
    ///
    /// The kernel kills it when the *thread* that starts it ends: so none of them outlives its test, but do
    /// not start one that shall live on a thread that does not (inside [`Namespace::enter`], say).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let (net, mount) = (Arc::clone(&self.net), self.mount.clone());
        // setns(2) to a mount namespace moves to its root.
        let directory =
            env::current_dir().ok().and_then(|path| CString::new(path.as_os_str().as_bytes()).ok());
        let parent = getpid();
        let enter = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the kernel knew about our wish.
            if getppid() != Some(parent) {
                return Err(io::Error::from(rustix::io::Errno::SRCH));
            }
            Self::join(&net, mount.as_deref())?;
            if let Some(directory) = &directory {
                rustix::process::chdir(directory.as_c_str())?;
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls, on descriptors and strings that it owns; it allocates
        // nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program inside to its end and wants it to succeed.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Finished> {
        run(self.command(program).args(arguments), COMMAND_LIMIT)?
            .success()
            .with_context(|| format!("in the namespace of the {}", self.name))
    }

    /// Feeds `lines` to one `ip -batch`: a process per line would cost the lab most of its start.
    pub(crate) fn ip_batch(&self, lines: &str) -> Result<()> {
        self.batch("ip", &[], lines).map(drop)
    }

    /// Feeds `lines` to one `ip` or `tc` with these options; gives what it prints.
    pub fn batch(&self, program: &str, options: &[&str], lines: &str) -> Result<String> {
        let mut command = self.command(program);
        command.args(options).args(["-batch", "-"]);
        let finished = run_with_input(&mut command, lines, COMMAND_LIMIT)?
            .success()
            .with_context(|| format!("in the namespace of the {}, with this input:\n{lines}", self.name))?;
        Ok(finished.stdout)
    }

    /// Feeds a ruleset to `nft -f`.
    pub(crate) fn nft(&self, ruleset: &str) -> Result<()> {
        run_with_input(self.command("nft").args(["-f", "-"]), ruleset, COMMAND_LIMIT)?
            .success()
            .with_context(|| format!("in the namespace of the {}, with this input:\n{ruleset}", self.name))?;
        Ok(())
    }

    /// Writes sysctls, named by their path below `/proc/sys`.
    pub fn set_sysctls<'a>(&self, values: impl IntoIterator<Item = (&'a str, &'a str)> + Send) -> Result<()> {
        self.enter(|| {
            for (name, value) in values {
                std::fs::write(format!("/proc/sys/{name}"), value)
                    .with_context(|| format!("setting {name} to {value} in the {}", self.name))?;
            }
            Ok(())
        })
    }

    /// Reads a sysctl, named by its path below `/proc/sys`.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let path = format!("/proc/sys/{name}");
        let text =
            self.enter(|| std::fs::read_to_string(&path)).with_context(|| format!("reading {path}"))?;
        Ok(text.trim().to_owned())
    }

    /// The kernel's cookie of the network namespace, by which programs know it; `None` before Linux 5.14.
    pub(crate) fn cookie(&self) -> Result<Option<u64>> {
        self.enter(|| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            let (mut cookie, mut length) = (0_u64, libc::socklen_t::try_from(size_of::<u64>())?);
            // SAFETY: the pointers are to live values, and the length is the value's.
            let result = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_NETNS_COOKIE,
                    (&raw mut cookie).cast(),
                    &raw mut length,
                )
            };
            match io::Error::last_os_error() {
                _ if result == 0 => Ok(Some(cookie)),
                error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
                error => Err(error.into()),
            }
        })
    }

    fn join(net: &OwnedFd, mount: Option<&OwnedFd>) -> rustix::io::Result<()> {
        move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
        if let Some(mount) = mount {
            move_into_link_name_space(mount.as_fd(), Some(LinkNameSpaceType::Mount))?;
        }
        Ok(())
    }

    /// What a child calls between fork and exec to get in, for those who need more than [`Self::command`].
    pub(crate) fn joiner(&self) -> impl Fn() -> rustix::io::Result<()> + Send + Sync + 'static {
        let (net, mount) = (Arc::clone(&self.net), self.mount.clone());
        move || Self::join(&net, mount.as_deref())
    }
}

/// Namespaces belong to threads, and a thread that has changed its own is good for nothing else.
fn on_fresh_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work) {
        Ok(thread) => thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload)),
        Err(error) => panic!("starting a thread: {error}"),
    })
}

/// unshare(2) for the calling thread.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only unsharing the table of descriptors breaks an assumption of Rust's, and it is not asked for.
    unsafe { unshare_unsafe(flags) }
}

fn open_own_namespace(kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/thread-self/ns/{kind}");
    Ok(File::open(&path).with_context(|| format!("opening {path}"))?.into())
}
