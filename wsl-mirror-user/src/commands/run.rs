//! `wsl-mirror run`

use anyhow::Result;
use clap::Args;

use crate::agent;
use crate::datapath::{object, plan, state};
use crate::exit::Exit;
use crate::host::{firewall, lock::Lock, require_root};
use crate::output;
use crate::wanted::Wanted;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    wanted: Wanted,
    /// Only print what would be done now
    #[arg(long)]
    dry_run: bool,
}

impl Run {
    /// Loads, and stays until it is told to end.
    pub fn exec(self) -> Result<Exit> {
        require_root("load an eBPF program")?;
        if !self.dry_run {
            agent::run(self.wanted)?;
            return Ok(Exit::Success);
        }
        let config = self.wanted.effective_config()?;
        let _lock = Lock::take()?;
        let state = state::read_with(&config.interface, config.hook, firewall::read())?;
        let steps = plan::plan(&state, &config)?;
        object::for_this_kernel()?;
        for step in &steps {
            output::line(&step.to_string())?;
        }
        if state.interface.index == 0 {
            output::line(&format!("wait for {}, and attach the program to it", config.interface))?;
        }
        Ok(Exit::Success)
    }
}
