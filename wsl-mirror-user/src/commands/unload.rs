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
    /// Takes everything away. Carried flows end.
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
        let unloaded = unload::unload()?;
        output::notes(&unloaded.notes);
        match unloaded.flows {
            _ if !unloaded.found => output::note("nothing is loaded"),
            0 => {}
            1 => output::note("ended 1 carried flow"),
            flows => output::note(&format!("ended {flows} carried flows")),
        }
        Ok(Exit::Success)
    }
}
