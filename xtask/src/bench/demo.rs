//! `cargo xtask demo`

use anyhow::Result;
use clap::Args;

use super::lab;
use crate::exit_code::ExitCode;

/// Show what wsl-mirror does, with a real Docker in a model of WSL's mirrored mode
///
/// Needs root and changes nothing on the machine. Ends with a table: who reaches whom without wsl-mirror, with it,
/// straight to the container, with exempt ports, and after it was unloaded. Clients are on Windows and in Linux, ports
/// those of Docker with and without its proxy.
#[derive(Args)]
pub(crate) struct Demo {}

impl Demo {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let Self {} = self;
        lab::run("demo", &[])
    }
}
