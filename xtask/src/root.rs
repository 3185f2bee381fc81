//! Tasks that need root.

use std::{fs, os::unix::fs::MetadataExt as _};

use anyhow::{Result, bail};

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Refuses a task that can do nothing without root.
pub(crate) fn require(task: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "`{task}` builds network namespaces and loads BPF programs, which takes root, and this is not root. Run \
         it as root: `sudo -E env \"PATH=$PATH\" cargo xtask {task}`. It works in namespaces of its own, which \
         end with it"
    )
}
