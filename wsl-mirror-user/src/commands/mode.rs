//! `wsl-mirror mode`

use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::exit::Exit;
use crate::host::networking::NetworkingMode;
use crate::host::wsl;
use crate::output::Output;

/// Arguments of `mode`.
#[derive(Debug, Args)]
pub struct Mode {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    wsl: bool,
    mode: &'a str,
    may_have_loopback0: bool,
}

impl Mode {
    /// Shows it. Who starts the agent asks this first (the unit's `ExecCondition=`).
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        let mode = wsl::networking_mode(Path::new("/"));
        let (wsl, may) = (mode != NetworkingMode::NotWsl, mode.may_have_loopback0());
        if self.json {
            output.json(&Report { wsl, mode: mode.name(), may_have_loopback0: may })?;
        } else {
            output.line(&match &mode {
                NetworkingMode::Unknown(why) => format!("unknown: {why}"),
                NetworkingMode::NotWsl => "this is not WSL".to_owned(),
                mode if may => mode.name().to_owned(),
                mode => format!("{}: there is no loopback0, and nothing to do", mode.name()),
            })?;
        }
        Ok(match (wsl, may) {
            (false, _) => Exit::NotWsl,
            (true, false) => Exit::NotMirrored,
            (true, true) => Exit::Success,
        })
    }
}
