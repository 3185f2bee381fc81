//! `cargo xtask bench` and `demo`: both run in the lab, by the package `xtask-lab`.

mod demo;
pub(crate) mod lab;

use anyhow::Result;
use clap::Args;

use crate::exit_code::ExitCode;
pub(crate) use demo::Demo;

/// Measure what wsl-mirror costs, and compare with the limits
///
/// Per packet against an empty program, traffic through docker-proxy against the nft remedy, and few flows and ports
/// against many. Needs root and some ten minutes on a machine that has nothing else to do.
#[derive(Args)]
pub(crate) struct Bench {
    /// A few short runs, to see that it works: no measurement, and not judged
    #[arg(long)]
    quick: bool,
    /// Only single packets: no comparison with the nft remedy, and none of few and many flows
    #[arg(long)]
    packets: bool,
}

impl Bench {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let options = [(self.quick, "--quick"), (self.packets, "--packets")];
        let arguments: Vec<&str> =
            options.into_iter().filter_map(|(given, name)| given.then_some(name)).collect();
        lab::run("bench", &arguments)
    }
}
