//! The one thing that the kernel does not take away with a process: cgroup directories.
//!
//! A lab has one cgroup whose name says which process it belongs to; its engines and their containers, and whatever
//! else is started there, live below it, so that hooks on it see them and nobody else. What is below it is removed
//! with the engine (by `lab-helper init`, so also when our process is killed), all of it with the lab; what is left
//! nevertheless, because everything was killed at once, is removed when the next lab starts.

mod remove;

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use remove::{children, hierarchies, remove, remove_tree, v2};

/// What the names of all labs' cgroups start with.
const PREFIX: &str = "wsl-mirror-lab-";

/// The root of cgroup v2.
pub(crate) fn root() -> Result<PathBuf> {
    Ok(v2()?)
}

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

    /// The name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it, or the group of this name below it, is in cgroup v2; made if it is not there.
    pub(crate) fn directory(&self, below: &str) -> Result<PathBuf> {
        let path = v2()?.join(&self.name).join(below);
        fs::create_dir_all(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for LabCgroup {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes the cgroups of labs whose process is gone. One that still has processes in it stays: rmdir(2) says
/// no, and that is right.
fn sweep() {
    for directory in lab_directories().filter(|path| owner_is_dead(path)) {
        let _ = remove_tree(&directory);
    }
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

/// The cgroups of all labs: at the root of the one hierarchy (cgroup v2), or of each (v1, its hierarchies
/// mounted one below the other).
fn lab_directories() -> impl Iterator<Item = PathBuf> {
    hierarchies().flat_map(|hierarchy| children(&hierarchy)).filter(|path| name_of(path).starts_with(PREFIX))
}

/// The last component.
fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
