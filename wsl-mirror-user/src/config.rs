//! `/etc/wsl-mirror.toml`.

mod contradictions;
pub mod options;
mod ports;
mod problems;
mod values;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use wsl_mirror_core::abi::{
    BUILT_IN_OWNERS, DEFAULT_ALIAS, DEFAULT_MARK, DEFAULT_SOURCE_ALIAS, Owner, OwnerPolicy, Policy, PortKey,
    PortPolicy,
};

use self::ports::{PathChoice, PortRule};
use self::values::{Choice, OwnerRule, Port};
use crate::exit::{Exit, Failure, OrExit as _};

pub use self::problems::{Invalid, Problem};
pub use self::values::{HookChoice, LogLevel, Switch};

/// Where the configuration is unless `--config` says otherwise. It need not exist.
pub const PATH: &str = "/etc/wsl-mirror.toml";

/// What the configuration says, or would say by default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The interface that carries Windows' 127.0.0.1.
    #[serde(deserialize_with = "values::interface_name")]
    pub interface: String,
    /// The address to which carried flows are sent inside Linux.
    #[serde(deserialize_with = "values::alias")]
    pub alias: Ipv4Addr,
    /// The address from which direct flows come inside Linux.
    #[serde(deserialize_with = "values::source_alias")]
    pub source_alias: Ipv4Addr,
    /// The bits that carried packets get in `skb->mark`.
    #[serde(deserialize_with = "values::mark")]
    pub mark: u32,
    /// What ports get about which nothing is written, served by whom nothing is written about.
    pub default: Choice,
    /// Which way flows take to ports whose container is known, unless `ports` names the port.
    pub path: PathChoice,
    /// Whether Linux' own clients of published ports are connected straight to the container.
    pub linux_clients: Switch,
    /// Whether an agent keeps connections of Linux to its own 127.0.0.1 on `lo`.
    pub keep_on_lo: Switch,
    /// What ports get by who serves them, beside what is built in.
    #[serde(deserialize_with = "values::owner_rules")]
    pub owners: Vec<OwnerRule>,
    /// Ports to leave alone.
    pub exempt: Vec<Port>,
    /// Policy and path of single ports.
    #[serde(deserialize_with = "ports::port_rules")]
    pub ports: Vec<PortRule>,
    /// How the program is attached.
    pub hook: HookChoice,
    /// What the program logs, for `wsl-mirror log`.
    pub log: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interface: "loopback0".into(),
            alias: Ipv4Addr::from(DEFAULT_ALIAS),
            source_alias: Ipv4Addr::from(DEFAULT_SOURCE_ALIAS),
            mark: DEFAULT_MARK,
            default: Choice::Pass,
            path: PathChoice::Auto,
            linux_clients: Switch::Auto,
            keep_on_lo: Switch::Auto,
            owners: Vec::new(),
            exempt: Vec::new(),
            ports: Vec::new(),
            hook: HookChoice::Auto,
            log: LogLevel::Off,
        }
    }
}

impl Config {
    /// Reads this file, else the one at [`PATH`], which may be missing.
    pub fn read(file: Option<&Path>) -> Result<Self> {
        let path = file.map_or_else(|| PathBuf::from(PATH), Path::to_owned);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|error| {
                Failure::new(
                    Exit::Config,
                    format!(
                        "the configuration {} is not valid, nothing was changed: {error}",
                        path.display()
                    ),
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
                Ok(Self::default())
            }
            Err(error) => Err(error)
                .or_exit(Exit::Config, || format!("cannot read the configuration {}", path.display())),
        }
    }

    /// Reads a text. Errors name line and column; all unknown keys are named at once, and all contradictions.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let unknown = problems::unknown_keys(text);
        if !unknown.is_empty() {
            return Err(Invalid(unknown));
        }
        let config: Self =
            toml::from_str(text).map_err(|error| Invalid(vec![Problem::found(text, &error)]))?;
        let contradictions = contradictions::find(text, &config.exempt, &config.ports);
        if contradictions.is_empty() { Ok(config) } else { Err(Invalid(contradictions)) }
    }

    /// Everything that is written about owners: what is built in, unless the file says something else of it.
    pub fn owner_policies(&self) -> BTreeMap<Owner, OwnerPolicy> {
        let built_in = BUILT_IN_OWNERS.into_iter();
        let written = self
            .owners
            .iter()
            .map(|rule| (Owner::new(rule.name.as_bytes(), rule.uid.0), Policy::from(rule.policy)));
        built_in.chain(written).map(|(owner, policy)| (owner, OwnerPolicy::new(policy))).collect()
    }

    /// Everything that the file says about single ports, and which ports Windows never sends in any case. The command line's
    /// field is unset.
    pub fn port_policies(&self) -> BTreeMap<PortKey, PortPolicy> {
        ports::policies(&self.exempt, &self.ports)
    }
}

#[cfg(test)]
mod tests;
