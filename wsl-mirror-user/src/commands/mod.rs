//! The subcommands, one file each.

mod config;
mod exempt;
mod install;
mod load;
mod log;
mod mode;
mod policy;
mod run;
mod status;
mod stopped;
mod unload;

use anyhow::Result;
use clap::Subcommand;

use crate::exit::Exit;
use crate::output::Output;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the programs, pin them, attach them; or replace those that run, without losing a packet
    Load(load::Load),
    /// Do what load does, and stay: wait for the interface, and put right what changes
    Run(run::Run),
    /// Take everything away that load made; carried flows end
    Unload(unload::Unload),
    /// Show whether and how packets are steered
    Status(status::Status),
    /// Say what ports get: pass, steer or direct
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Leave ports alone (the policy pass)
    #[command(subcommand)]
    Exempt(exempt::Exempt),
    /// Look after the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Have the agent started at boot: by systemd, or by WSL's `[boot] command`; shows what it changes
    Install(install::Install),
    /// Take back what install did
    Uninstall(install::Uninstall),
    /// Show WSL's networking mode; exit code 0 unless there cannot be a loopback0
    Mode(mode::Mode),
    /// Show what the program logs, until Ctrl-C (needs `log = "debug"` when it was loaded)
    Log(log::Log),
    /// Tidy up behind an agent that has ended (`ExecStopPost=` of the unit)
    #[command(hide = true)]
    Stopped(stopped::Stopped),
}

impl Command {
    /// Does it; the result goes to `output`.
    pub fn exec(self, mut output: Output) -> Result<Exit> {
        match self {
            Self::Load(load) => load.exec(&mut output),
            Self::Run(run) => run.exec(&mut output),
            Self::Unload(unload) => unload.exec(),
            Self::Status(status) => status.exec(&mut output),
            Self::Policy(policy) => policy.exec(&mut output),
            Self::Exempt(exempt) => exempt.exec(&mut output),
            Self::Config(config) => config.exec(&mut output),
            Self::Install(install) => install.exec(&mut output),
            Self::Uninstall(uninstall) => uninstall.exec(&mut output),
            Self::Mode(mode) => mode.exec(&mut output),
            Self::Log(log) => log.exec(output),
            Self::Stopped(stopped) => stopped.exec(),
        }
    }
}
