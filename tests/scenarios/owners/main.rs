//! A port is steered because of who serves it: whose socket it is that the stack is going to choose.
//!
//! Windows' packets to any of these ports are caught by an engine's rule, without an engine ([`nat::trap`]): so a port
//! answers exactly if it is steered, and says who answered. [`Sockets`] play who serves.

mod clients;
mod existing;
mod hooks;
mod served;

use anyhow::Result;
use wsl_mirror_lab::{Lab, Namespace, Sockets, nat};

/// Whose ports are steered without a word in the configuration.
const PROXY: &str = "docker-proxy";

/// A process of this name in the guest.
fn process(lab: &Lab, name: &str) -> Result<Sockets> {
    process_in(lab, lab.guest(), name)
}

/// A process of this name in another namespace.
fn process_in(lab: &Lab, namespace: &Namespace, name: &str) -> Result<Sockets> {
    Sockets::start(lab, namespace, env!("CARGO_BIN_EXE_lab-sockets"), name)
}

/// A lab with the trap, and wsl-mirror loaded.
fn loaded() -> Result<Lab> {
    let lab = Lab::builder().build()?;
    nat::trap(lab.guest())?;
    load(&lab)?;
    Ok(lab)
}

fn load(lab: &Lab) -> Result<()> {
    lab.wsl_mirror(&["load"])?.success().map(drop)
}
