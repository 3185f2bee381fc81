//! `cargo xtask bench` and `demo`: both run in the lab, by the package `xtask-lab`.

mod demo;
pub(crate) mod lab;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{build::cargo, exit_code::ExitCode};
pub(crate) use demo::Demo;

/// Measure what wsl-mirror costs, and compare with the limits
///
/// Per packet against an empty program; traffic by the nft remedy, through docker-proxy and straight to the container; and
/// few flows and ports against many. Needs root and some fifteen minutes on a machine that has nothing else to do. Linux'
/// own clients take --linux and some fifteen minutes more.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own on the command line")]
pub(crate) struct Bench {
    /// A few short runs, to see that it works: no measurement, and not judged
    #[arg(long)]
    quick: bool,
    /// Only single packets: no traffic, and no comparison of few and many flows
    #[arg(long, conflicts_with_all = ["traffic", "linux", "connects", "chart"])]
    packets: bool,
    /// Only traffic: the nft remedy, steered, and direct
    #[arg(long)]
    traffic: bool,
    /// Linux' own clients: through docker-proxy and translated; by Windows, kept on lo and on a plain lo
    #[arg(long)]
    linux: bool,
    /// What the hooks for Linux' own clients cost all other programs
    #[arg(long)]
    connects: bool,
    /// Draw the comparison of traffic as SVG, into docs/traffic.svg or a file of yours
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "clap's form of an option with an optional value")]
    chart: Option<Option<PathBuf>>,
}

impl Bench {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let options = [
            (self.quick, "--quick"),
            (self.packets, "--packets"),
            (self.traffic, "--traffic"),
            (self.linux, "--linux"),
            (self.connects, "--connects"),
        ];
        let mut arguments: Vec<&str> =
            options.into_iter().filter_map(|(given, name)| given.then_some(name)).collect();
        let chart =
            self.chart.map(|file| file.unwrap_or_else(|| cargo::workspace().join("docs/traffic.svg")));
        if let Some(file) = &chart {
            arguments
                .extend(["--chart", file.to_str().context("the chart's file has a name that is not UTF-8")?]);
        }
        lab::run("bench", &arguments)
    }
}
