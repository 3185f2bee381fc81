//! `wsl-mirror policy`, and what `wsl-mirror exempt` shares with it.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use wsl_mirror_core::abi::{Policy, PortKey, PortPolicy};

use crate::exit::{Exit, Failure};
use crate::host::{
    lock::{Access, Lock},
    require_root,
};
use crate::loader::maps::{self, PolicyMap};
use crate::loader::pins::Pins;
use crate::output::{self, Output};
use crate::policy::{PortRange, PortSpec, ranges, without_flags};

/// What to do with policies of ports. A policy lasts until `unset` or `unload`, and is stronger than the configuration
/// file, which `load` writes beside it.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Give ports a policy, from their next flow on
    Set {
        /// PORT[-PORT][/tcp|/udp]
        #[arg(required = true, value_name = "PORT")]
        ports: Vec<PortSpec>,
        /// What the ports get
        #[arg(value_enum)]
        policy: Choice,
    },
    /// Take back what `set` and `exempt add` said, from the ports' next flow on
    Unset {
        /// PORT[-PORT][/tcp|/udp]
        #[arg(required = true, value_name = "PORT")]
        ports: Vec<PortSpec>,
    },
    /// Show the policies and paths of ports, and whether the command line or the configuration wrote them
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// A policy, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Leave the ports alone
    Pass,
    /// Steer their flows to the listener
    Steer,
    /// Take their flows straight to the container; a port passes as long as its container is not known
    Direct,
}

impl From<Choice> for Policy {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Pass => Self::Pass,
            Choice::Steer => Self::Steer,
            Choice::Direct => Self::Direct,
        }
    }
}

impl PolicyCommand {
    /// Does it.
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        require_root("read and write eBPF maps")?;
        match self {
            Self::Set { ports, policy } => set(&ports, policy.into()),
            Self::Unset { ports } => unset(&ports),
            Self::List { json } => list(json, output),
        }
    }
}

fn open() -> Result<PolicyMap> {
    let pins = Pins::read()?;
    if !pins.has("PORT_POLICY") {
        return Err(Failure::new(
            Exit::NotLoaded,
            "nothing is loaded, so no map holds policies of ports: run `wsl-mirror load` first, or write them to \
             `exempt` or `[ports]` of the configuration",
        ));
    }
    pins.require_our_layout()?;
    maps::PORT_POLICY.pinned()
}

/// Writes the command line's field of each port where `new` gives one. Gives each port's policies before and after.
pub(super) fn write(
    ports: &[PortSpec],
    new: impl Fn(PortPolicy) -> Option<Policy>,
) -> Result<Vec<(PortKey, PortPolicy)>> {
    // A load that ran meanwhile would write its own field over what we read.
    let _lock = Lock::take(Access::Exclusive, output::note)?;
    let mut map = open()?;
    let mut after = Vec::new();
    for key in ports.iter().flat_map(PortSpec::keys) {
        let old = map.policy(key)?;
        let written = new(old).map_or(old, |policy| PortPolicy { cli: policy as u8, ..old });
        if written != old {
            map.set_policy(key, written)?;
        }
        after.push((key, written));
    }
    Ok(after)
}

/// Sets the command line's policy of each port.
pub(super) fn set(ports: &[PortSpec], policy: Policy) -> Result<Exit> {
    write(ports, |_| Some(policy))?;
    Ok(Exit::Success)
}

fn unset(ports: &[PortSpec]) -> Result<Exit> {
    let after = write(ports, |_| Some(Policy::Unset))?;
    let left = after.into_iter().map(|(key, written)| (key, written.effective()));
    for range in ranges(left.filter(|(_, policy)| *policy != Policy::Unset)) {
        let policy = range.written.name();
        output::note(&format!("{} still has the policy {policy}, by the configuration file", range.spec()));
    }
    Ok(Exit::Success)
}

/// An element of `--json`. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    first_port: u16,
    last_port: u16,
    protocol: &'static str,
    /// The policy in force.
    pub(super) policy: &'static str,
    /// What the command line wrote.
    pub(super) cli: &'static str,
    /// What the configuration file says.
    pub(super) config: &'static str,
    /// The port's own path, by the configuration file; `exempt list` has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'static str>,
}

impl Entry {
    /// What is written about a range of ports, without the path.
    pub(super) fn of_policy(range: &PortRange<PortPolicy>) -> Self {
        Self {
            first_port: *range.ports.start(),
            last_port: *range.ports.end(),
            protocol: range.protocol.name(),
            policy: range.written.effective().name(),
            cli: Policy::from_byte(range.written.cli).name(),
            config: Policy::from_byte(range.written.config).name(),
            path: None,
        }
    }

    fn with_path(range: &PortRange<PortPolicy>) -> Self {
        Self { path: Some(range.written.path().name()), ..Self::of_policy(range) }
    }
}

fn list(json: bool, output: &mut Output) -> Result<Exit> {
    let ranges = written(|_| true)?;
    if json {
        output.json(&ranges.iter().map(Entry::with_path).collect::<Vec<_>>())?;
    } else if !ranges.is_empty() {
        let rows = ranges.iter().map(|range| {
            let entry = Entry::with_path(range);
            let path = entry.path.unwrap_or_default();
            [&*range.spec().to_string(), entry.policy, entry.cli, entry.config, path].map(str::to_owned)
        });
        let headings = ["port", "policy", "command line", "configuration", "path"];
        output.line(&output::table(headings, &[], rows))?;
    }
    Ok(Exit::Success)
}

/// What is written about the ports that `shown` chooses. The lock is free again while it is shown: a pager may take its
/// time.
pub(super) fn written(shown: impl Fn(&PortPolicy) -> bool) -> Result<Vec<PortRange<PortPolicy>>> {
    let _lock = Lock::take(Access::Shared, output::note)?;
    Ok(ranges(without_flags(open()?.all()?).into_iter().filter(|(_, policy)| shown(policy))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wsl_mirror_core::abi::{Path, Protocol};

    #[test]
    fn json_keeps_its_shape() {
        let written = PortPolicy { cli: 3, config: 1, path: Path::Proxy as u8, flags: 0 };
        let key = |port| (PortKey::new(Protocol::Tcp, port), written);
        let entries: Vec<Entry> = ranges([key(22), key(23)]).iter().map(Entry::with_path).collect();
        let expected = serde_json::json!([{
            "first_port": 22, "last_port": 23, "protocol": "tcp", "policy": "direct", "cli": "direct", "config": "pass",
            "path": "proxy",
        }]);
        assert_eq!(serde_json::to_value(entries).unwrap(), expected);
    }
}
