//! `wsl-mirror run`

use anyhow::Result;
use clap::Args;

use crate::agent;
use crate::config::options::LoadOptions;
use crate::exit::Exit;
use crate::host::{
    firewall,
    lock::{Access, Lock},
    require_root,
};
use crate::loader::local_rules::Filters;
use crate::loader::{object, plan, state};
use crate::output::{self, Output};

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    options: LoadOptions,
    /// Only print what would be done now
    #[arg(long)]
    dry_run: bool,
}

impl Run {
    /// Loads, and stays until it is told to end.
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        require_root("load an eBPF program")?;
        if !self.dry_run {
            agent::run(self.options, output::note)?;
            return Ok(Exit::Success);
        }
        for line in self.would_do()? {
            output.line(&line)?;
        }
        Ok(Exit::Success)
    }

    /// What an agent would do now: the one that is at work, or else a new one.
    fn would_do(&self) -> Result<Vec<String>> {
        let config = self.options.effective_config()?;
        let cgroup = self.options.open_cgroup()?;
        output::notes(&self.options.notes(&cgroup));
        let _lock = Lock::take(Access::Exclusive, output::note)?;
        let firewall = firewall::read();
        let filters = Filters::from(&firewall);
        let state = state::read_with(&config, firewall.into(), filters)?;
        let name = &config.interface;
        if state.steered_by_others.is_some() {
            return Ok(vec![format!(
                "stand aside, since wsl-mirror of another distribution steers {name}, until it does not any more"
            )]);
        }
        let steps = match agent::lock::holder() {
            Some(_) => plan::difference(&state, &config)?,
            None => plan::take_over(&state, &config)?,
        };
        object::for_this_kernel()?;
        let mut lines: Vec<String> = steps.iter().map(ToString::to_string).collect();
        if state.interface.index == 0 {
            lines.push(format!("wait for {name}, and attach the program to it"));
        }
        if lines.is_empty() {
            lines.push("nothing: everything is as it should be".to_owned());
        }
        Ok(lines)
    }
}
