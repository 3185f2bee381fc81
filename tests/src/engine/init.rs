//! The first process of an engine's PID namespace, `lab-helper init`.

use std::{
    ffi::CStr,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    mount::{MountFlags, mount},
    process::setsid,
    thread::UnshareFlags,
};

use super::root::OtherRoot;
use crate::{Namespace, namespace::unshare, process::wait};

/// Starts `command` (`lab-helper init …`, its standard input a pipe) in the guest, as process 1 of a new PID
/// namespace with mounts of its own, on the files of `root` if there is one. It lives, and with it all that is in
/// that namespace, until [`kill`] or this process' end.
pub(crate) fn spawn(command: &mut Command, guest: &Namespace, root: Option<OtherRoot>) -> Result<Child> {
    let join = guest.joiner();
    let enter = move || {
        // A Ctrl-C at the terminal is for us alone; the engine then goes with us, at once.
        setsid()?;
        join()?;
        unshare(UnshareFlags::NEWNS)?;
        // This is process 1 of a new PID namespace, and engines ask /proc about their own kind.
        mount(c"proc", c"/proc", c"proc", MountFlags::empty(), None::<&CStr>)?;
        if let Some(root) = &root {
            root.enter()?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls, on descriptors and strings that are there; it
    // allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
    // The PID namespace of its children belongs to a thread: hence one for this child alone.
    let spawned = thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(UnshareFlags::NEWPID).context("making a PID namespace")?;
                command.spawn().with_context(|| format!("starting {}", crate::process::command_line(command)))
            })
            .join()
    });
    spawned.unwrap_or_else(|_| bail!("the thread that starts the engine panicked"))
}

/// Kills the PID namespace, and waits until the last process of it is gone.
pub(crate) fn kill(init: &mut Child) {
    // Almost as if we died: it then kills all others, and removes their cgroup before it goes; told so, it leaves alone
    // what is the lab's.
    if let Some(mut stdin) = init.stdin.take() {
        let _ = stdin.write_all(b"go");
    }
    if !wait(init, Duration::from_secs(10)).unwrap_or(false) {
        // zap_pid_ns_processes(): process 1 is not reaped before all others are.
        let _ = init.kill();
    }
    let _ = init.wait();
}
