//! The guest's mounts: what a WSL distribution has to itself, and a place for everything that shall vanish.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

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

/// Names programs that `cargo xtask` had to unpack, since apt could not install them. Engines and wsl-mirror look for
/// them in the system's folders.
const UNPACKED: &str = "WSL_MIRROR_UNPACKED";

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
        let unpacked = unpacked(&env::var_os(UNPACKED).unwrap_or_default());
        if self.wslinfo || !unpacked.is_empty() {
            overlay("/usr")?;
        }
        if self.wslinfo {
            install_helper(Path::new("/usr/bin/wslinfo"))?;
        }
        for program in &unpacked {
            link_into_usr_bin(program)?;
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

/// The programs of a list. An empty list, which `split_paths` takes for one empty path, has none.
fn unpacked(list: &OsStr) -> Vec<PathBuf> {
    env::split_paths(list).filter(|path| !path.as_os_str().is_empty()).collect()
}

/// A busybox of that name is dynamic, or it would not have been unpacked.
fn link_into_usr_bin(program: &Path) -> Result<()> {
    let name = program.file_name().context("an unpacked program without a name")?;
    let link = Path::new("/usr/bin").join(name);
    let link_anew = || {
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        symlink(program, &link)
    };
    link_anew().with_context(|| format!("linking {} to {}", link.display(), program.display()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_has_no_unpacked_programs() {
        assert!(unpacked(OsStr::new("")).is_empty());
        assert_eq!(unpacked(OsStr::new("/cache/nft:/cache/iptables")).len(), 2);
    }
}
