//! `wsl-mirror load`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::config::{Config, LogLevel};
use crate::datapath::apply::{self, Target};
use crate::datapath::{object, plan, state};
use crate::exit::{Exit, Failure};
use crate::host::{cgroup, interface, lock::Lock, require_root};
use crate::output;

/// Arguments of `load`.
#[derive(Debug, Args)]
pub struct Load {
    /// The configuration [default: /etc/wsl-mirror.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The interface that carries Windows' 127.0.0.1 [default: loopback0, or what the configuration says]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Only tell apart who serves a port among the processes of this cgroup (v2) and below it [default: all]
    #[arg(long, value_name = "FOLDER")]
    cgroup: Option<PathBuf>,
    /// What the program logs, for `wsl-mirror log` [default: off, or what the configuration says]
    #[arg(long, value_name = "LEVEL")]
    log: Option<LogLevel>,
    /// If the kernel refuses the program, show all that its verifier says, not only the end
    #[arg(long)]
    verifier_log: bool,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Load {
    /// Loads, or replaces what is loaded.
    pub fn exec(self) -> Result<Exit> {
        require_root("load an eBPF program")?;
        let config = self.effective_config()?;
        let cgroup = cgroup::open(self.cgroup.as_deref())?;
        let _lock = Lock::take()?;
        let state = state::read(&config.interface, config.hook)?;
        let steps = plan::plan(&state, &config)?;
        let object = object::for_this_kernel()?;
        if self.dry_run {
            for step in &steps {
                output::line(&step.to_string())?;
            }
            return Ok(Exit::Success);
        }
        let target = Target {
            interface: &config.interface,
            object: &object,
            cgroup,
            whole_verifier_log: self.verifier_log,
        };
        if self.cgroup.is_none() && !cgroup::is_the_whole(&target.cgroup) {
            output::note(
                "this is a cgroup namespace: of ports that are served from outside of it (by other distributions), it \
                 is not known who serves them, and `default` of the configuration is what they get",
            );
        }
        apply::apply(&steps, target)?;
        Ok(Exit::Success)
    }

    /// The file's configuration, with what the command line says in its place.
    fn effective_config(&self) -> Result<Config> {
        let mut config = Config::read(self.config.as_deref())?;
        if let Some(name) = &self.interface {
            if !interface::is_valid_name(name) {
                return Err(Failure::new(Exit::NoInterface, format!("no interface can be called {name:?}")));
            }
            config.interface.clone_from(name);
        }
        config.log = self.log.unwrap_or(config.log);
        Ok(config)
    }
}
