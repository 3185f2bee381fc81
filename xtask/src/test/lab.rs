//! The suites whose tests run in the lab on this kernel: lab, engines, dist.

use std::{env, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result};

use super::{
    cargo_test::tests,
    options::Test,
    report::{Group, Verdict, heading},
    suite::Extent,
};
use crate::{
    build::{self, cargo},
    dist, engines, vm,
};

/// How many of the lab's networks run at once, unless `RUST_TEST_THREADS` says otherwise. Each has an engine of its
/// own, and with more of them than cores a scenario's timeouts are a matter of luck.
const THREADS: &str = "2";

/// Has tests that try each of a long series of things try some of them only.
const BRIEF: &str = "WSL_MIRROR_LAB_BRIEF";

pub(super) fn run(options: &Test, product: &Path) -> Result<Group> {
    heading("lab");
    // The tests of other engines are a suite of their own.
    let skipped = engines::TESTS.iter().flat_map(|tests| ["--skip", tests]);
    let arguments = arguments(skipped, options);
    tests("lab", &mut command(product, options), &arguments, options.rerun("lab"))
}

/// Runs the matrix of engines; returns also the rows that it measured.
pub(super) fn engines(options: &Test, extent: Extent, product: &Path) -> Result<(Group, Vec<engines::Row>)> {
    let started = Instant::now();
    heading("engines");
    let folder = engines::ensure(extent)?;
    let results = product.parent().context("the product lies in no folder")?.join("engines");
    engines::empty(&results)?;
    let mut cargo = command(product, options);
    cargo.args(["--test", engines::BINARY]).env(engines::OVERRIDE, folder).env(engines::RESULTS, &results);
    let ignored = (extent == Extent::Full).then_some("--include-ignored");
    let group = tests("engines", &mut cargo, &arguments(ignored, options), options.rerun("engines"))?;
    let rows = engines::read(&results)?;
    if options.write {
        println!("written: {}", engines::write(&rows)?.display());
    }
    Ok((Group { time: started.elapsed(), ..group }, rows))
}

/// Makes package and tarball, and tries them.
pub(super) fn dist(options: &Test, product: &Path) -> Result<Group> {
    let started = Instant::now();
    heading("dist");
    let made = match dist::make_for_tests() {
        Ok(made) => made,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            let rerun = options.rerun("dist");
            return Ok(Group::without_tests("dist", Verdict::Failed, started.elapsed(), rerun));
        }
    };
    let mut cargo = command(product, options);
    cargo.args(["--test", dist::BINARY]).env(dist::OVERRIDE, &made.folder);
    // Filters add to each other: beside the user's own, this one would choose all.
    let all = (!options.has_filter()).then_some(dist::TESTS);
    let arguments = arguments(["--ignored"].into_iter().chain(all), options);
    let group = tests("dist", &mut cargo, &arguments, options.rerun("dist"))?;
    Ok(Group { time: started.elapsed(), ..group })
}

/// The suite's own arguments for its test binaries, and the user's.
fn arguments<'a>(own: impl IntoIterator<Item = &'a str>, options: &Test) -> Vec<String> {
    own.into_iter().map(str::to_owned).chain(options.filter.iter().cloned()).collect()
}

fn command(product: &Path, options: &Test) -> Command {
    let mut cargo = cargo::command("test");
    cargo.args(["--release", "--package", build::LAB_PACKAGE]).env("WSL_MIRROR_BIN", product);
    if options.soak {
        cargo.env(vm::SOAK, "1");
    }
    if !options.all && !options.has_filter() {
        cargo.env(BRIEF, "1");
    }
    if env::var_os("RUST_TEST_THREADS").is_none() {
        cargo.env("RUST_TEST_THREADS", THREADS);
    }
    cargo
}
