//! Runs a task of the package `xtask-lab`, which is built only when it is needed.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{
    cargo::{self, Profile},
    exit_code::ExitCode,
    root,
    setup::{self, Needs, Outcome},
};

/// Sets up, builds the product and the task, and runs the task.
///
/// # Errors
/// Not root, or something cannot be built. That the task itself failed is in the exit code: it said why.
pub(crate) fn run(task: &str, arguments: &[&str]) -> Result<ExitCode> {
    root::require(task)?;
    if matches!(setup::ensure(Needs::Lab)?, Outcome::Missing) {
        return Ok(ExitCode::Missing);
    }
    let product = cargo::build_product(Profile::Release)?;
    let tasks = cargo::build("xtask-lab", Profile::Release)?;
    let mut command = Command::new(&tasks);
    setup::equip(&mut command);
    let status = command
        .arg(task)
        .args(arguments)
        .env("WSL_MIRROR_BIN", product)
        .status()
        .with_context(|| format!("starting {}", tasks.display()))?;
    Ok(match status.code() {
        Some(0) => ExitCode::Success,
        Some(3) => ExitCode::TestsFailed,
        _ => ExitCode::Failed,
    })
}
