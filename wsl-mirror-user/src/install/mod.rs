//! Being started at boot: what the distribution has, what has to change in it, and changing it.
//!
//! A unit where systemd is init, else our part of `/etc/wsl.conf`'s `[boot] command`; never both.

mod agent;
mod apply;
mod binary;
mod plan;
mod state;
mod step;
mod unit;
pub mod wsl_conf;

pub use apply::{apply, refuse};
pub use plan::{Caller, Plan, install, uninstall, upgrade};
pub use state::State;
