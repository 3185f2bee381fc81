//! `cargo xtask shell`, and what a lab's Windows starts with in any shell.

mod port;
mod switches;

use std::io::IsTerminal as _;

use anyhow::{Result, bail};
use clap::Args;

pub use port::{Port, PortRange, Protocol};
pub use switches::{Garble, Packet, Part, Switches};

use crate::{bench::lab, exit_code::ExitCode};

/// Open a shell in a model of WSL's mirrored mode, with Docker and a published port
///
/// Needs root and changes nothing on the machine. Options say how Windows misbehaves from the start; `windows help`
/// in the shell shows how it can while it runs.
#[derive(Args)]
pub(crate) struct Shell {
    #[command(flatten)]
    switches: Switches,
}

impl Shell {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        if !std::io::stdin().is_terminal() {
            bail!("the shell needs a terminal to be a prompt on");
        }
        let arguments = self.switches.arguments();
        lab::run("shell", &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }
}
