//! The cgroup to which programs for sockets are attached.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Result;
use rustix::fs::{AtFlags, Mode, OFlags, fstatfs, open as open_path, statat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::exit::{Exit, Failure, OrExit as _};

/// Where cgroup v2 is mounted: alone, or beside v1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// `CGROUP2_SUPER_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: i64 = 0x6367_7270;

/// Opens the cgroup at this path, else the root of cgroup v2. Where the root is mounted nowhere, it gets a mount that is
/// attached nowhere and ends with the descriptor.
pub fn open(path: Option<&Path>) -> Result<OwnedFd> {
    if let Some(path) = path {
        let directory = File::open(path)
            .or_exit(Exit::Config, || format!("cannot open the cgroup {} (--cgroup)", path.display()))?;
        if !is_cgroup2(&directory) {
            return Err(Failure::new(
                Exit::Config,
                format!("{} is no directory of cgroup v2 (--cgroup)", path.display()),
            ));
        }
        return Ok(directory.into());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mounted = ROOTS.into_iter().filter_map(|path| open_path(path, flags, Mode::empty()).ok());
    match mounted.into_iter().find(is_cgroup2) {
        Some(root) => Ok(root),
        None => unmounted().or_exit(Exit::Kernel, || {
            "cannot open the root of cgroup v2, which is not mounted: CONFIG_CGROUPS is needed".into()
        }),
    }
}

/// Whether this is the root of the hierarchy. In a cgroup namespace another cgroup is mounted as the root.
/// The real one has no `cgroup.events` (Documentation/admin-guide/cgroup-v2.rst: "exists on non-root cgroups").
pub fn is_hierarchy_root(cgroup: &impl AsFd) -> bool {
    statat(cgroup, "cgroup.events", AtFlags::empty()).is_err()
}

fn unmounted() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn is_cgroup2(directory: &impl AsFd) -> bool {
    #[expect(clippy::unnecessary_cast, reason = "the type of f_type differs between architectures")]
    fstatfs(directory).is_ok_and(|found| found.f_type as i64 == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    #[test]
    fn what_is_no_cgroup_is_refused() {
        for path in ["/proc", "/no/such/folder"] {
            assert_eq!(exit_of(&open(Some(Path::new(path))).unwrap_err()), Exit::Config, "{path}");
        }
    }
}
