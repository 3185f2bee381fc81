//! `cargo xtask dist`

use anyhow::Result;
use clap::Args;

use crate::{
    dist,
    exit_code::ExitCode,
    setup::{self, Needs, Outcome},
};

/// Make what is given to others: a package for Debian and Ubuntu, and a tarball for every Linux
#[derive(Args)]
pub(crate) struct Dist {}

impl Dist {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let Self {} = self;
        if matches!(setup::ensure(Needs::Build)?, Outcome::Missing) {
            return Ok(ExitCode::Missing);
        }
        let made = dist::make()?;
        for path in [&made.deb, &made.tarball] {
            println!("{}", path.display());
        }
        Ok(ExitCode::Success)
    }
}
