//! The machine, read only: its lock, its cgroups, its interfaces, its routing, its sockets, its
//! packet filters.
//! What we make on it belongs to the loader.

pub mod cgroup;
pub mod conntrack;
pub mod docker_proxy;
pub mod firewall;
pub mod interface;
pub mod lock;
pub mod netlink;
pub mod netns;
pub mod networking;
pub mod routes;
pub mod routing;
pub mod sockets;
pub mod tool;
pub mod wsl;

use anyhow::Result;

use crate::exit::{Exit, Failure};

/// Fails unless we are root.
pub fn require_root(to_do: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(Exit::NotRoot, format!("root is needed to {to_do}: run it again with sudo")))
}
