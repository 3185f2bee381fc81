//! Finding and removing the cgroups of labs. std only: `helper/main.rs` includes this file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const ROOT: &str = "/sys/fs/cgroup";
/// Removes a lab's cgroup, or one below it, from every hierarchy. Its processes are dead, or it stays.
pub(crate) fn remove(name: &str) {
    for directory in hierarchies().map(|root| root.join(name)).filter(|path| path.is_dir()) {
        // A process that was just killed counts until it is reaped.
        let deadline = Instant::now() + Duration::from_secs(2);
        while remove_tree(&directory).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where a hierarchy may be mounted: the one (cgroup v2), or each (v1) below the same folder.
pub(crate) fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let root = Path::new(ROOT);
    children(root).into_iter().chain([root.to_owned()])
}

/// Where cgroup v2 is mounted: alone, or beside v1.
pub(crate) fn v2() -> io::Result<PathBuf> {
    let root = Path::new(ROOT);
    // Every cgroup of v2 has this file, the root too; none of v1 has.
    [root.to_owned(), root.join("unified")]
        .into_iter()
        .find(|path| path.join("cgroup.controllers").is_file())
        .ok_or_else(|| io::Error::other("cgroup v2 is mounted neither on /sys/fs/cgroup nor below it"))
}

/// Removes a cgroup with those below it; fails if one has processes.
pub(crate) fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}
