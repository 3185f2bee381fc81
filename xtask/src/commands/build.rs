//! `cargo xtask build`

use anyhow::Result;
use clap::Args;

use crate::{
    cargo::{self, Profile},
    exit_code::ExitCode,
    setup::{self, Needs, Outcome},
};

/// Build `wsl-mirror`, the eBPF object inside
#[derive(Args)]
pub(crate) struct Build {
    /// Without optimisation, with debug assertions (the object is the same)
    #[arg(long)]
    debug: bool,
}

impl Build {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        if matches!(setup::ensure(Needs::Build)?, Outcome::Missing) {
            return Ok(ExitCode::Missing);
        }
        let profile = if self.debug { Profile::Debug } else { Profile::Release };
        let binary = cargo::build_product(profile)?;
        println!("{}", binary.display());
        Ok(ExitCode::Success)
    }
}
