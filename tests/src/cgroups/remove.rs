//! Finding and removing the cgroups of labs. std only: `helper/main.rs` includes this file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const ROOT: &str = "/sys/fs/cgroup";
/// What the names of all labs' cgroups start with.
pub(crate) const PREFIX: &str = "wsl-mirror-lab-";

/// Removes a lab's cgroup from every hierarchy. Its processes are dead, or it stays.
pub(crate) fn remove(name: &str) {
    for directory in lab_directories().filter(|path| path.ends_with(name)) {
        // A process that was just killed counts until it is reaped.
        let deadline = Instant::now() + Duration::from_secs(2);
        while remove_tree(&directory).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The cgroups of all labs: at the root of the one hierarchy (cgroup v2), or of each (v1, its hierarchies
/// mounted one below the other).
pub(crate) fn lab_directories() -> impl Iterator<Item = PathBuf> {
    let root = Path::new(ROOT);
    let hierarchies = children(root).into_iter().chain([root.to_owned()]);
    hierarchies.flat_map(|hierarchy| children(&hierarchy)).filter(|path| name_of(path).starts_with(PREFIX))
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

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// The last component.
pub(crate) fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
