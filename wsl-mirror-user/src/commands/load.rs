//! `wsl-mirror load`

use anyhow::Result;
use clap::Args;

use crate::agent;
use crate::config::options::LoadOptions;
use crate::exit::Exit;
use crate::host::{
    lock::{Access, Lock},
    require_root,
};
use crate::loader::apply::{self, Target, VerifierLog};
use crate::loader::local_rules::Follower;
use crate::loader::{object, plan, state};
use crate::output::{self, Output};

/// Arguments of `load`.
#[derive(Debug, Args)]
pub struct Load {
    #[command(flatten)]
    options: LoadOptions,
    /// If the kernel refuses the program, show all that its verifier says, not only the end
    #[arg(long)]
    verifier_log: bool,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Load {
    /// Loads, or replaces what is loaded.
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        require_root("load an eBPF program")?;
        let config = self.options.effective_config()?;
        let cgroup = self.options.open_cgroup()?;
        output::notes(&self.options.notes(&cgroup));
        let _lock = Lock::take(Access::Exclusive, output::note)?;
        let state = state::read(&config, follower())?;
        let steps = plan::plan(&state, &config)?;
        let object = object::for_this_kernel()?;
        if self.dry_run {
            for step in &steps {
                output.line(&step.to_string())?;
            }
            return Ok(Exit::Success);
        }
        let target = Target {
            interface: &config.interface,
            firewall: &state.firewall,
            object: &object,
            cgroup,
            verifier_log: if self.verifier_log { VerifierLog::All } else { VerifierLog::End },
        };
        let (notes, done) = apply::apply(&steps, target);
        output::notes(&notes);
        done?;
        for obstacle in state.obstacles(config.alias) {
            output::note(&format!("no flow can be carried until the next load: {obstacle}"));
        }
        if let Some(obstacle) = state.source_alias.obstacle() {
            output::note(&format!("no flow goes direct until the next load: {obstacle}"));
        }
        Ok(Exit::Success)
    }
}

/// Only an agent keeps connections on `lo`. One that is at work goes on with it.
fn follower() -> Follower {
    if agent::lock::holder().is_some() { Follower::AgentBesideUs } else { Follower::Nobody }
}
