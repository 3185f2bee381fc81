//! `wsl-mirror mode`

use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::exit::Exit;
use crate::host::wsl::Mode as Networking;
use crate::output;

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
    pub fn exec(self) -> Result<Exit> {
        let mode = Networking::read(Path::new("/"));
        let (wsl, may) = (mode != Networking::NotWsl, mode.may_have_loopback0());
        if self.json {
            output::json(&Report { wsl, mode: mode.word(), may_have_loopback0: may })?;
        } else {
            output::line(&match &mode {
                Networking::Unknown(why) => format!("unknown: {why}"),
                Networking::Other(word) => format!("{word}: there is no loopback0, and nothing to do"),
                Networking::NotWsl => "this is not WSL".to_owned(),
                Networking::Mirrored | Networking::Proxy(_) => mode.word().to_owned(),
            })?;
        }
        Ok(match (wsl, may) {
            (false, _) => Exit::NotWsl,
            (true, false) => Exit::NotMirrored,
            (true, true) => Exit::Success,
        })
    }
}
