//! Runs a task of the package `xtask-lab`, which is built only when a task needs it.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    exit_code::ExitCode,
    root,
    setup::{self, Needs, Outcome},
};

/// Sets up, builds the product and the task, and runs the task.
///
/// # Errors
/// Not root, or something cannot be built. A task that itself fails says why, and ends with an exit code.
pub(crate) fn run(task: &str, arguments: &[&str]) -> Result<ExitCode> {
    root::require(task)?;
    if matches!(setup::ensure(Needs::Lab)?, Outcome::Missing) {
        return Ok(ExitCode::Missing);
    }
    let product = build::product(Profile::Release)?;
    let tasks = build::package("xtask-lab", Profile::Release)?;
    let mut command = Command::new(&tasks);
    setup::equip(&mut command);
    let status = command
        .arg(task)
        .args(arguments)
        .env("WSL_MIRROR_BIN", product)
        .status()
        .with_context(|| format!("starting {}", tasks.display()))?;
    Ok(ExitCode::of(status.code()))
}
