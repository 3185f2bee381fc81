//! `wsl-mirror exempt`

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;
use wsl_mirror_core::abi::{Policy, PortPolicy};

use crate::exit::{Exit, Failure};
use crate::host::{
    lock::{Access, Lock},
    require_root,
};
use crate::loader::maps::{self, PolicyMap};
use crate::loader::pins::Pins;
use crate::output::{self, Output};
use crate::policy::{PortRange, PortSpec, ranges};

/// What to do with exemptions. They last until `del` or `unload`; those in the configuration file are written
/// at each `load`.
#[derive(Debug, Subcommand)]
pub enum Exempt {
    /// Leave ports alone, from their next flow on
    Add {
        /// PORT[-PORT][/tcp|/udp]
        #[arg(required = true, value_name = "PORT")]
        ports: Vec<PortSpec>,
    },
    /// Take back what `add` said, from the ports' next flow on
    Del {
        /// PORT[-PORT][/tcp|/udp]
        #[arg(required = true, value_name = "PORT")]
        ports: Vec<PortSpec>,
    },
    /// Show what is written about ports
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Exempt {
    /// Does it.
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        require_root("read and write eBPF maps")?;
        match self {
            Self::Add { ports } => write(&ports, Policy::Pass),
            Self::Del { ports } => write(&ports, Policy::Unset),
            Self::List { json: true } => list_json(output),
            Self::List { json: false } => list_table(output),
        }
    }
}

fn open() -> Result<PolicyMap> {
    let pins = Pins::read()?;
    if !pins.has("PORT_POLICY") {
        return Err(Failure::new(
            Exit::NotLoaded,
            "nothing is loaded, so there is nowhere to write exemptions to: run `wsl-mirror load` first, or write \
             them to `exempt` in the configuration",
        ));
    }
    pins.require_our_layout()?;
    maps::PORT_POLICY.pinned()
}

/// Writes the command line's field of each port.
fn write(ports: &[PortSpec], policy: Policy) -> Result<Exit> {
    // A load that ran meanwhile would write its own field over what we read.
    let _lock = Lock::take(Access::Exclusive, output::note)?;
    let mut map = open()?;
    let mut still_exempt = Vec::new();
    for key in ports.iter().flat_map(PortSpec::keys) {
        let new = PortPolicy { cli: policy as u8, ..map.policy(key)? };
        map.set_policy(key, new)?;
        if policy == Policy::Unset && new.effective() == Policy::Pass {
            still_exempt.push((key, ()));
        }
    }
    for range in ranges(still_exempt) {
        output::note(&format!("{} is still exempt by the configuration file", range.spec()));
    }
    Ok(Exit::Success)
}

/// An element of `--json`. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Entry {
    first_port: u16,
    last_port: u16,
    protocol: &'static str,
    /// The policy in force.
    policy: &'static str,
    /// What the command line wrote.
    cli: &'static str,
    /// What the configuration file says.
    config: &'static str,
}

impl From<PortRange<PortPolicy>> for Entry {
    fn from(range: PortRange<PortPolicy>) -> Self {
        Self {
            first_port: *range.ports.start(),
            last_port: *range.ports.end(),
            protocol: range.protocol.name(),
            policy: range.written.effective().name(),
            cli: Policy::from_byte(range.written.cli).name(),
            config: Policy::from_byte(range.written.config).name(),
        }
    }
}

fn list_json(output: &mut Output) -> Result<Exit> {
    output.json(&written()?.into_iter().map(Entry::from).collect::<Vec<_>>())?;
    Ok(Exit::Success)
}

fn list_table(output: &mut Output) -> Result<Exit> {
    let ranges = written()?;
    if !ranges.is_empty() {
        let rows = ranges.into_iter().map(|range| {
            let spec = range.spec().to_string();
            let entry = Entry::from(range);
            [spec, entry.policy.to_owned(), entry.cli.to_owned(), entry.config.to_owned()]
        });
        output.line(&output::table(["port", "policy", "command line", "configuration"], &[], rows))?;
    }
    Ok(Exit::Success)
}

/// What is written about ports. The lock is free again while it is shown: a pager may take its time.
fn written() -> Result<Vec<PortRange<PortPolicy>>> {
    let _lock = Lock::take(Access::Shared, output::note)?;
    Ok(ranges(open()?.all()?.into_iter().filter(|(_, policy)| !policy.is_unset())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wsl_mirror_core::abi::{PortKey, Protocol};

    #[test]
    fn json_keeps_its_shape() {
        let written = PortPolicy { cli: 0, config: 1 };
        let key = |port| (PortKey::new(Protocol::Tcp, port), written);
        let entries: Vec<Entry> = ranges([key(22), key(23)]).into_iter().map(Entry::from).collect();
        let expected = serde_json::json!([{
            "first_port": 22, "last_port": 23, "protocol": "tcp", "policy": "pass", "cli": "unset", "config": "pass",
        }]);
        assert_eq!(serde_json::to_value(entries).unwrap(), expected);
    }
}
