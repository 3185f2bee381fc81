//! The options of `load` and `run`, and the configuration that they make with the file.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::values::LogLevel;
use super::{Config, PATH};
use crate::exit::{Exit, Failure};
use crate::host::{cgroup, interface};
use crate::notes::Notes;

/// The command line's options.
#[derive(Clone, Debug, Default, Args)]
pub struct LoadOptions {
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
}

impl LoadOptions {
    /// Where the configuration is, or would be.
    pub fn config_path(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(PATH))
    }

    /// The cgroup to which the hooks for sockets are attached.
    pub fn open_cgroup(&self) -> Result<OwnedFd> {
        cgroup::open(self.cgroup.as_deref())
    }

    /// Notes about a cgroup that leaves processes out although no option says so.
    pub fn notes(&self, cgroup: &OwnedFd) -> Notes {
        let mut notes = Notes::default();
        if self.cgroup.is_none() && !cgroup::is_hierarchy_root(cgroup) {
            notes.add(
                "this is a cgroup namespace: of ports that are served from outside of it (by other distributions), it \
                 is not known who serves them, and `default` of the configuration is what they get",
            );
        }
        notes
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
