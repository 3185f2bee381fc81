//! `cargo test`, as a group of tests.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{
    libtest,
    report::{Group, Verdict},
    rerun::Rerun,
};

/// Runs tests with these arguments for their binaries, passes their output on, and counts.
pub(super) fn tests(name: &str, command: &mut Command, arguments: &[String], rerun: Rerun) -> Result<Group> {
    let started = Instant::now();
    // Without it, the first binary that fails hides the results of the others.
    command.arg("--no-fail-fast");
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name}: starting cargo test"))?;
    let output = child.stdout.take().context("the tests' output is piped")?;
    let results = libtest::stream(output, std::io::stdout())
        .with_context(|| format!("{name}: reading the tests' output"))?;
    let status = child.wait().with_context(|| format!("{name}: waiting for cargo test"))?;
    Ok(Group {
        count: results.count,
        failures: results.failures,
        ..Group::without_tests(name, Verdict::from(status), started.elapsed(), rerun)
    })
}
