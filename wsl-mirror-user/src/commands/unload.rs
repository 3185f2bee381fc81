//! `wsl-mirror unload`

use anyhow::Result;
use clap::Args;

use crate::agent;
use crate::exit::{Exit, Failure};
use crate::host::{
    lock::{Access, Lock},
    require_root,
};
use crate::loader::unload;
use crate::output;

/// Arguments of `unload`.
#[derive(Debug, Args)]
pub struct Unload {}

impl Unload {
    /// Takes everything away. Flows that were steered go on: their conntrack entries stay.
    #[expect(clippy::unused_self, reason = "every command is called alike")]
    pub fn exec(self) -> Result<Exit> {
        require_root("unload an eBPF program")?;
        let _lock = Lock::take(Access::Exclusive, output::note)?;
        if let Some(agent) = agent::lock::holder() {
            return Err(Failure::new(
                Exit::Busy,
                format!(
                    "`wsl-mirror run` is at work (process {}) and would load it again: end it first (`systemctl stop \
                     wsl-mirror`, or `kill {0}`)",
                    agent.pid
                ),
            ));
        }
        agent::lock::tidy_up();
        if !unload::unload()? {
            output::note("nothing is loaded");
        }
        Ok(Exit::Success)
    }
}
