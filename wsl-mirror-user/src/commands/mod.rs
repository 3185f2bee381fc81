//! The subcommands, one file each.

mod exempt;
mod load;
mod log;
mod run;
mod status;
mod unload;

use anyhow::Result;
use clap::Subcommand;

use crate::exit::Exit;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the program, pin it, attach it; or replace the one that runs, without losing a packet
    Load(load::Load),
    /// Do what load does, and stay: wait for the interface, and put right what changes
    Run(run::Run),
    /// Take everything away that load made
    Unload(unload::Unload),
    /// Show whether and how packets are steered
    Status(status::Status),
    /// Leave ports alone
    #[command(subcommand)]
    Exempt(exempt::Exempt),
    /// Show what the program logs, until Ctrl-C (needs `log = "debug"` when it was loaded)
    Log(log::Log),
}

impl Command {
    /// Does it.
    pub fn exec(self) -> Result<Exit> {
        match self {
            Self::Load(load) => load.exec(),
            Self::Run(run) => run.exec(),
            Self::Unload(unload) => unload.exec(),
            Self::Status(status) => status.exec(),
            Self::Exempt(exempt) => exempt.exec(),
            Self::Log(log) => log.exec(),
        }
    }
}
