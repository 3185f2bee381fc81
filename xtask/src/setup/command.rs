//! `cargo xtask setup`

use std::time::Instant;

use anyhow::Result;
use clap::Args;

use super::{Outcome, needs::Needs};
use crate::exit_code::ExitCode;

/// Install what building and testing need, where that is possible
///
/// On Debian and its derivatives, as root, packages come from apt; bpf-linker is built into the user's cache. apt removes
/// and downgrades nothing: a tool that it cannot install beside the user's packages is unpacked into that cache.
/// Elsewhere it says what to install by hand. Nothing happens when nothing is missing.
#[derive(Args)]
pub(crate) struct Setup {
    /// Only what building needs, not the lab's docker, iptables and the like
    #[arg(long)]
    build_only: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

impl Setup {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let started = Instant::now();
        let needs = if self.build_only { Needs::Build } else { Needs::Lab };
        if self.dry_run {
            print!("{}", super::describe(needs));
            return Ok(ExitCode::Success);
        }
        match super::ensure(needs)? {
            Outcome::Ready(toolchain) => {
                println!("The object is built by {}", toolchain.compiler);
                println!("and linked by {}.", toolchain.linker.path.display());
                println!("Nothing is missing ({:.2?}).", started.elapsed());
                Ok(ExitCode::Success)
            }
            Outcome::Missing => Ok(ExitCode::Missing),
        }
    }
}
