//! The BPF file system: where it is, who could write to it, and making it.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context as _, Result};
use rustix::fs::{CWD, statfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::exit::{Exit, Failure, OrExit as _};

/// Where everybody expects it.
pub const ROOT: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: i64 = 0xcafe_4a11;
/// The source that we name when we mount it, so that `unload` knows its own mount again.
const SOURCE: &str = "wsl-mirror";
/// What the kernel itself puts into a new bpffs (`populate_bpffs`).
const KERNELS_OWN: [&str; 2] = ["maps.debug", "progs.debug"];

/// Whether bpffs is mounted.
pub fn is_mounted() -> bool {
    #[expect(clippy::unnecessary_cast, reason = "the type of f_type differs between architectures")]
    statfs(ROOT).is_ok_and(|found| found.f_type as i64 == MAGIC)
}

/// Mounts it, for root only.
pub fn mount_it() -> Result<()> {
    mount(SOURCE, ROOT, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"mode=0700")
        .or_exit(Exit::NoBpffs, || {
            format!("cannot mount bpffs at {ROOT}; by hand: mount -t bpf -o mode=0700 bpf {ROOT}")
        })
}

/// Unmounts it if it was mounted by [`mount_it`] and is empty again.
pub fn unmount_ours() -> Result<bool> {
    if !is_mounted() {
        return Ok(false);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    if !is_ours(&mounts, visible_mount()?) {
        return Ok(false);
    }
    let in_it = list(Path::new(ROOT))?.unwrap_or_default();
    if in_it.iter().any(|name| !KERNELS_OWN.contains(&name.as_str())) {
        return Ok(false);
    }
    unmount_it()?;
    Ok(true)
}

/// Unmounts it, whoever mounted it.
pub fn unmount_it() -> Result<()> {
    unmount(ROOT, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {ROOT}"))
}

/// The id of the mount that one sees at [`ROOT`], which is the one that unmounting takes away: others may lie
/// below it, or below another mount further up the path, and mountinfo lists them all.
fn visible_mount() -> Result<u64> {
    let root = fs::File::open(ROOT).with_context(|| format!("cannot open {ROOT}"))?;
    let path = format!("/proc/self/fdinfo/{}", root.as_raw_fd());
    let info = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    mount_id(&info).with_context(|| format!("{path} names no mount"))
}

/// The mount that a file of `/proc/self/fdinfo` names.
pub fn mount_id(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// Whether the mount of this id is a bpffs of our own. A line of mountinfo:
/// `ID PARENT DEV ROOT MOUNTPOINT … - TYPE SOURCE OPTIONS`.
pub fn is_ours(mountinfo: &str, id: u64) -> bool {
    mountinfo.lines().filter_map(|line| line.split_once(" - ")).any(|(place, kind)| {
        let mut kind = kind.split(' ');
        place.split(' ').next().and_then(|found| found.parse().ok()) == Some(id)
            && (kind.next(), kind.next()) == (Some("bpf"), Some(SOURCE))
    })
}

/// Makes a directory for root only; says whether it was not there before. One that is there has to be safe:
/// in a bpffs that anybody may write to, somebody may have made it after we had looked.
pub fn make_directory(path: &Path) -> Result<bool> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => require_safe(path).map(|()| false),
        Err(error) => Err(error)
            .or_exit(Exit::Kernel, || format!("cannot make the directory {} in bpffs", path.display())),
    }
}

/// Whether a directory of the pin path is there; fails if somebody else than root could have made it, or could
/// change it.
pub fn has_safe(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        _ => require_safe(path).map(|()| true),
    }
}

/// Fails if somebody else than root could have made, or could change, an existing directory of the pin path.
///
/// bpffs is mounted with mode 1777 unless told otherwise: there anybody can make a directory of our name first.
/// The root of bpffs itself may be writable for all if it is sticky: nobody but root can then remove or rename
/// what root made in it.
pub fn require_safe(path: &Path) -> Result<()> {
    let found = rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("cannot look at {}", path.display()))?;
    let metadata =
        Directory { owner: found.st_uid, mode: found.st_mode, is_root_of_bpffs: path == Path::new(ROOT) };
    match metadata.objection() {
        None => Ok(()),
        Some(objection) => Err(Failure::new(
            Exit::UnsafePinPath,
            format!(
                "{path} {objection}: whoever did that could swap our program and maps. Look at what is there \
                 (`ls -la {path}`), remove it (`rm -r {path}`) and load again",
                path = path.display()
            ),
        )),
    }
}

struct Directory {
    owner: u32,
    mode: u32,
    is_root_of_bpffs: bool,
}

impl Directory {
    fn objection(&self) -> Option<String> {
        const TYPE: u32 = 0o170_000;
        const DIRECTORY: u32 = 0o040_000;
        const STICKY: u32 = 0o1000;
        if self.mode & TYPE != DIRECTORY {
            return Some("is no directory".into());
        }
        if self.owner != 0 {
            return Some(format!("belongs to user {}", self.owner));
        }
        let excused = self.is_root_of_bpffs && self.mode & STICKY != 0;
        (self.mode & 0o022 != 0 && !excused)
            .then(|| format!("is writable for others than root (mode {:04o})", self.mode & 0o7777))
    }
}

/// The names of what is in a directory; `None` if there is no such directory.
pub fn list(path: &Path) -> Result<Option<Vec<String>>> {
    match fs::read_dir(path) {
        Ok(entries) => {
            let mut names: Vec<String> = entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<_>>()
                .with_context(|| format!("cannot list {}", path.display()))?;
            names.sort();
            Ok(Some(names))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot list {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_somebody_else_could_have_made_is_objected_to() {
        let objects =
            |owner, mode, is_root_of_bpffs| Directory { owner, mode, is_root_of_bpffs }.objection().is_some();
        assert!(!objects(0, 0o040_700, false));
        assert!(!objects(0, 0o041_777, true), "bpffs as `mount -t bpf` makes it");
        assert!(objects(0, 0o041_777, false));
        assert!(objects(0, 0o040_777, true));
        assert!(objects(1000, 0o040_700, false));
        assert!(objects(0, 0o040_770, false));
        assert!(objects(0, 0o120_777, false), "a symbolic link");
    }

    #[test]
    fn only_our_own_mount_is_known_as_ours() {
        const MOUNTS: &str = "36 35 0:31 / /sys/fs/bpf rw,nosuid shared:9 - bpf wsl-mirror rw,mode=700\n\
                              40 36 0:33 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n\
                              41 20 0:34 / /tmp rw - tmpfs wsl-mirror rw\n\
                              nonsense";
        assert!(is_ours(MOUNTS, 36));
        assert!(!is_ours(MOUNTS, 40), "somebody else's, over ours");
        assert!(!is_ours(MOUNTS, 41), "no bpffs");
        assert!(!is_ours(MOUNTS, 3));
    }
}
