//! The one thing that the kernel does not take away with a process: cgroup directories.
//!
//! A lab's engines put their containers below one cgroup whose name says which process it belongs to. It is
//! removed on drop; what the labs of killed processes left is removed when the next lab starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "wsl-mirror-lab-";

/// The name of a lab's own cgroup, below the root of whatever hierarchy.
#[derive(Debug)]
pub(crate) struct LabCgroup {
    name: String,
}

impl LabCgroup {
    /// Makes up the name (engines make the directory), and sweeps up after the dead.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let pid = process::id();
        let start = start_time(pid).unwrap_or(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self { name: format!("{PREFIX}{pid}-{start}-{count}") }
    }

    /// What engines take for `--cgroup-parent`.
    pub(crate) fn parent(&self) -> String {
        format!("/{}", self.name)
    }
}

impl Drop for LabCgroup {
    fn drop(&mut self) {
        for directory in lab_directories().filter(|path| path.ends_with(&self.name)) {
            // A process that was just killed counts until it is reaped.
            let deadline = Instant::now() + Duration::from_secs(2);
            while remove_tree(&directory).is_err() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Removes the cgroups of labs whose process is gone. One that still has processes in it stays: rmdir(2) says
/// no, and that is right.
fn sweep() {
    for directory in lab_directories().filter(|path| owner_is_dead(path)) {
        let _ = remove_tree(&directory);
    }
}

/// The cgroups of all labs: at the root of the one hierarchy (cgroup v2), or of each (v1, its hierarchies
/// mounted one below the other).
fn lab_directories() -> impl Iterator<Item = PathBuf> {
    let root = Path::new(ROOT);
    let hierarchies = children(root).into_iter().chain([root.to_owned()]);
    hierarchies.flat_map(|hierarchy| children(&hierarchy)).filter(|path| name_of(path).starts_with(PREFIX))
}

fn owner_is_dead(directory: &Path) -> bool {
    let mut fields = name_of(directory).trim_start_matches(PREFIX).split('-').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start))) = (fields.next(), fields.next()) else { return false };
    u32::try_from(pid).ok().and_then(start_time) != Some(start)
}

/// When a process started (`starttime` of proc(5)): tells it from a later one with the same id.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold spaces; after it starts field 3, and starttime is field 22.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn remove_tree(directory: &Path) -> io::Result<()> {
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

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
