//! What is asked for on the command line of `load` and `run`, beside the configuration.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::config::{self, Config, LogLevel};
use crate::exit::{Exit, Failure};
use crate::host::{cgroup, interface};
use crate::output;

/// These arguments.
#[derive(Clone, Debug, Default, Args)]
pub struct Wanted {
    /// The configuration [default: /etc/wsl-mirror.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The interface that carries Windows' 127.0.0.1 [default: loopback0, or what the configuration says]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Only tell apart who serves a port among the processes of this cgroup (v2) and below it [default: all]
    #[arg(long, value_name = "FOLDER")]
    pub cgroup: Option<PathBuf>,
    /// What the program logs, for `wsl-mirror log` [default: off, or what the configuration says]
    #[arg(long, value_name = "LEVEL")]
    log: Option<LogLevel>,
}

impl Wanted {
    /// Where the configuration is, or would be.
    pub fn config_path(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(config::PATH))
    }

    /// Where the hooks for sockets are to be attached. Says so if that leaves something out that was not asked to be.
    pub fn open_cgroup(&self) -> Result<OwnedFd> {
        let cgroup = cgroup::open(self.cgroup.as_deref())?;
        if self.cgroup.is_none() && !cgroup::is_the_whole(&cgroup) {
            output::note(
                "this is a cgroup namespace: of ports that are served from outside of it (by other distributions), it \
                 is not known who serves them, and `default` of the configuration is what they get",
            );
        }
        Ok(cgroup)
    }

    /// The file's configuration, with what the command line says in its place.
    pub fn effective_config(&self) -> Result<Config> {
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
