//! `wsl-mirror exempt`: the short form of `wsl-mirror policy` for the policy `pass`.

use anyhow::Result;
use clap::Subcommand;
use wsl_mirror_core::abi::{Path, Policy, PortPolicy};

use super::policy::{self, Entry};
use crate::exit::Exit;
use crate::host::require_root;
use crate::output::{self, Output};
use crate::policy::{PortRange, PortSpec, ranges};

/// What to do with exemptions: ports whose policy is `pass`. They last until `del` or `unload`; those in the configuration
/// file are written at each `load`.
#[derive(Debug, Subcommand)]
pub enum Exempt {
    /// Leave ports alone, from their next flow on (`policy set PORT… pass`)
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
    /// Show which ports are exempt
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
            Self::Add { ports } => policy::set(&ports, Policy::Pass),
            Self::Del { ports } => del(&ports),
            Self::List { json } => list(json, output),
        }
    }
}

/// Takes exemptions back. Another policy of the command line stays: `add` did not write it.
fn del(ports: &[PortSpec]) -> Result<Exit> {
    let is_exemption = |written: PortPolicy| Policy::from_byte(written.cli) == Policy::Pass;
    let after = policy::write(ports, |old| is_exemption(old).then_some(Policy::Unset))?;
    let still_exempt = after.into_iter().filter(|(_, written)| written.effective() == Policy::Pass);
    for range in ranges(still_exempt.map(|(key, _)| (key, ()))) {
        output::note(&format!("{} is still exempt by the configuration file", range.spec()));
    }
    Ok(Exit::Success)
}

fn list(json: bool, output: &mut Output) -> Result<Exit> {
    let ranges = exempt()?;
    if json {
        output.json(&ranges.iter().map(Entry::of_policy).collect::<Vec<_>>())?;
    } else if !ranges.is_empty() {
        let rows = ranges.iter().map(|range| {
            let entry = Entry::of_policy(range);
            [&*range.spec().to_string(), entry.policy, entry.cli, entry.config].map(str::to_owned)
        });
        output.line(&output::table(["port", "policy", "command line", "configuration"], &[], rows))?;
    }
    Ok(Exit::Success)
}

/// The exempt ports. Their paths do not matter, and do not part neighbours.
fn exempt() -> Result<Vec<PortRange<PortPolicy>>> {
    let written = policy::written(|written| written.effective() == Policy::Pass)?;
    let each = written.iter().flat_map(|range| {
        let written = PortPolicy { path: Path::Unset as u8, ..range.written };
        range.spec().keys().map(move |key| (key, written)).collect::<Vec<_>>()
    });
    Ok(ranges(each))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wsl_mirror_core::abi::{PortKey, Protocol};

    #[test]
    fn json_keeps_its_shape() {
        let written = PortPolicy { config: 1, ..PortPolicy::default() };
        let key = |port| (PortKey::new(Protocol::Tcp, port), written);
        let entries: Vec<Entry> = ranges([key(22), key(23)]).iter().map(Entry::of_policy).collect();
        let expected = serde_json::json!([{
            "first_port": 22, "last_port": 23, "protocol": "tcp", "policy": "pass", "cli": "unset", "config": "pass",
        }]);
        assert_eq!(serde_json::to_value(entries).unwrap(), expected);
    }
}
