//! `wsl-mirror`: Windows' 127.0.0.1 reaches published container ports in WSL2's mirrored mode.
//!
//! A library only so that fuzz targets (`tests/fuzz`) can reach what reads what others wrote, and `xtask/assets` the
//! command line's description.

mod agent;
mod commands;
mod config;
mod errors;
mod exit;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod host;
mod inspect;
mod install;
mod loader;
mod notes;
mod output;
mod policy;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};

use crate::commands::Command;
use crate::exit::{Exit, exit_of};
use crate::output::Output;

/// Puts packets for Windows' 127.0.0.1 back on the road to docker-proxy, in WSL2's mirrored mode.
///
/// Two small eBPF programs on `loopback0`; no firewall rule. `load` it once (at boot), and it goes on by itself.
#[derive(Debug, Parser)]
#[command(version, after_long_help = Exit::help(), max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

/// The command line, for completions and man pages.
pub fn command() -> clap::Command {
    Args::command()
}

/// The whole program.
pub fn main() -> ExitCode {
    match Args::parse().command.exec(Output::stdout()) {
        Ok(exit) => exit.into(),
        Err(error) => {
            output::note(&format!("{error:#}"));
            exit_of(&error).into()
        }
    }
}
