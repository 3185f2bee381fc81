//! The guest's mounts: what a WSL distribution has to itself, and a place for everything that shall vanish.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
        open_tree,
    },
};

use crate::HELPER;

/// Inside the guest: a directory in memory, seen by nobody else, gone with the namespace.
pub const SCRATCH: &str = "/run/lab";

/// Where `lab-helper` lies inside the guest.
pub(crate) const HELPER_PATH: &str = "/run/lab/lab-helper";

/// Names the static busybox, where `cargo xtask` had to unpack one: this machine's own, if any, is dynamic.
const BUSYBOX: &str = "WSL_MIRROR_BUSYBOX";

/// Which mounts a mount namespace gets besides those that it inherits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mounts {
    /// One of its own on /sys/fs/bpf, or none.
    pub(crate) bpffs: bool,
    /// `/usr/bin/wslinfo`, or none.
    pub(crate) wslinfo: bool,
}

impl Mounts {
    /// Mounts everything; called on a thread that is in the new mount and network namespaces already.
    pub(crate) fn mount_all(self) -> Result<()> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("making the mounts private")?;
        // /run belongs to the distribution on WSL too; in it are xtables.lock and what engines put there.
        mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
            .context("mounting a tmpfs on /run")?;
        for directory in [SCRATCH, "/run/lock"] {
            fs::create_dir_all(directory).with_context(|| format!("creating {directory}"))?;
        }
        mount_sysfs()?;
        if self.bpffs {
            mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), Some(c"mode=0700"))
                .context("mounting a bpffs on /sys/fs/bpf")?;
        }
        install_helper(Path::new(HELPER_PATH))?;
        // dockerd writes /etc/docker/key.json, whatever it is told; the product has files in both.
        for directory in ["/etc", "/var"] {
            overlay(directory)?;
        }
        let busybox = env::var_os(BUSYBOX).filter(|path| !path.is_empty());
        if self.wslinfo || busybox.is_some() {
            overlay("/usr")?;
        }
        if self.wslinfo {
            install_helper(Path::new("/usr/bin/wslinfo"))?;
        }
        if let Some(busybox) = busybox {
            fs::copy(&busybox, "/usr/bin/busybox")
                .with_context(|| format!("copying {} to /usr/bin", busybox.display()))?;
        }
        Ok(())
    }
}

/// /sys/class/net shows the network namespace of whoever mounted it, so the guest needs its own sysfs; what
/// is mounted below the old one for all (cgroups above all) is carried over.
fn mount_sysfs() -> Result<()> {
    let mut below = Vec::new();
    for path in ["/sys/fs/cgroup", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security"] {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        match open_tree(CWD, path, flags) {
            Ok(tree) => below.push((path, tree)),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("cloning the mounts below {path}")),
        }
    }
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None::<&std::ffi::CStr>)
        .context("mounting a sysfs on /sys")?;
    for (path, tree) in below {
        move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .with_context(|| format!("mounting {path} again"))?;
    }
    Ok(())
}

/// Puts `lab-helper` there, under whatever name it is to be called by.
pub(crate) fn install_helper(path: &Path) -> Result<()> {
    fs::write(path, HELPER)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", path.display()))
}

/// What is written below `directory` goes to memory.
fn overlay(directory: &str) -> Result<()> {
    let own = Path::new(SCRATCH).join("written").join(directory.trim_start_matches('/'));
    let (upper, work) = (own.join("upper"), own.join("work"));
    for path in [&upper, &work] {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    }
    let options = format!("lowerdir={directory},upperdir={},workdir={}", upper.display(), work.display());
    let options = std::ffi::CString::new(options).context("a path with a NUL byte")?;
    mount("overlay", directory, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .with_context(|| format!("mounting an overlay on {directory}"))
}
