//! `wsl-mirror install` and `wsl-mirror uninstall`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::exit::Exit;
use crate::host::require_root;
use crate::install::{self, Caller, Plan, State};
use crate::output::{self, Output};

/// Arguments of `install`.
#[derive(Debug, Args)]
pub struct Install {
    #[command(flatten)]
    common: Common,
    /// The program that is to be started, as the distribution will see it [default: this one]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// For the package: nothing but have an agent that runs make way for the program that has replaced its own
    #[arg(long, hide = true)]
    upgrade: bool,
}

/// Arguments of `uninstall`.
#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    common: Common,
    /// For the package: leave its own unit and link to its own scripts
    #[arg(long, hide = true)]
    keep_package: bool,
}

#[derive(Debug, Args)]
struct Common {
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
    /// The folder of a distribution that does not run; no systemd is told
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    root: PathBuf,
}

impl Install {
    /// Has the agent started at boot.
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        let state = State::read(&self.common.root, self.binary.as_deref())?;
        if self.upgrade {
            return self.common.exec(output, &install::upgrade(&state), None);
        }
        self.common.exec(output, &install::install(&state)?, Some("it is installed already"))
    }
}

impl Uninstall {
    /// Takes back what `install` did.
    pub fn exec(self, output: &mut Output) -> Result<Exit> {
        let state = State::read(&self.common.root, None)?;
        let (caller, nothing) = if self.keep_package {
            (Caller::Package, None)
        } else {
            (Caller::User, Some("it is not installed"))
        };
        self.common.exec(output, &install::uninstall(&state, caller), nothing)
    }
}

impl Common {
    fn exec(&self, output: &mut Output, plan: &Plan, nothing: Option<&str>) -> Result<Exit> {
        if !self.dry_run && self.root == Path::new("/") {
            require_root("change what is started at boot")?;
        }
        // Before anything is changed.
        for step in &plan.steps {
            output.line(&step.to_string())?;
        }
        if let Some(nothing) = nothing
            && plan.steps.is_empty()
            && plan.refused.is_empty()
        {
            output::note(nothing);
        }
        let done = if self.dry_run { install::refuse(plan) } else { install::apply(plan, &self.root) };
        for note in &plan.notes {
            output::note(note);
        }
        done.map(|()| Exit::Success)
    }
}
