//! `/etc/wsl-mirror.toml`.

pub mod options;
mod problems;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use wsl_mirror_core::abi::{BUILT_IN_OWNERS, Owner, OwnerPolicy, Policy, PortKey};

use self::values::{Choice, OwnerRule, Port};
use crate::exit::{Exit, Failure, OrExit as _};

pub use self::problems::{Invalid, Problem};
pub use self::values::{DeliveryChoice, HookChoice, LogLevel};

/// Where the configuration is unless `--config` says otherwise. It need not exist.
pub const PATH: &str = "/etc/wsl-mirror.toml";

/// What the configuration says, or would say by default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The interface that carries Windows' 127.0.0.1.
    #[serde(deserialize_with = "values::interface_name")]
    pub interface: String,
    /// The bits that steered packets get in `skb->mark`; `None` for the first one that nobody else uses.
    #[serde(deserialize_with = "values::mark")]
    pub mark: Option<u32>,
    /// What ports get about which nothing is written, served by whom nothing is written about.
    pub default: Choice,
    /// What ports get by who serves them, beside what is built in.
    #[serde(deserialize_with = "values::owner_rules")]
    pub owners: Vec<OwnerRule>,
    /// Ports to leave alone.
    pub exempt: Vec<Port>,
    /// How the program is attached.
    pub hook: HookChoice,
    /// How steered packets get past rules that drop what does not come in on `lo`.
    pub delivery: DeliveryChoice,
    /// What the program logs, for `wsl-mirror log`.
    pub log: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interface: "loopback0".into(),
            mark: None,
            default: Choice::Pass,
            owners: Vec::new(),
            exempt: Vec::new(),
            hook: HookChoice::Auto,
            delivery: DeliveryChoice::Auto,
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

    /// Reads a text. Errors name line and column; all unknown keys are named at once.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let unknown = problems::unknown_keys(text);
        if !unknown.is_empty() {
            return Err(Invalid(unknown));
        }
        toml::from_str(text).map_err(|error| Invalid(vec![Problem::found(text, &error)]))
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

    /// Every exempt port.
    pub fn exempt_keys(&self) -> BTreeSet<PortKey> {
        self.exempt.iter().flat_map(|Port(spec)| spec.keys()).collect()
    }
}

#[cfg(test)]
mod tests;
