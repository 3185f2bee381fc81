//! The machine: its lock, its bpffs, its cgroups, its interfaces, its sockets.

pub mod bpffs;
pub mod cgroup;
pub mod interface;
pub mod lock;
pub mod sockets;

use anyhow::Result;

use crate::exit::{Exit, Failure};

/// Fails unless we are root.
pub fn require_root(to_do: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(Exit::NotRoot, format!("root is needed to {to_do}: run it again with sudo")))
}
