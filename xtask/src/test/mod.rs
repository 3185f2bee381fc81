//! `cargo xtask test`: which suites run, one after the other, and what they came to.

mod fuzz;
mod host;
mod lab;
mod libtest;
mod report;
mod rerun;
mod suite;

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build::{self, Profile},
    engines,
    exit_code::ExitCode,
    root::is_root,
    setup::{self, Needs, Outcome},
    vm::{self, Effort, Selection},
};
pub(crate) use libtest::{Count, Failure, Results, filters};
pub(crate) use report::{Group, Verdict, conclude};
pub(crate) use rerun::{Rerun, word};
pub(crate) use suite::Extent;
use suite::Suite;

/// Run the tests: host, lab, engines and one virtual machine, or the suites that are named
///
/// The lab needs root, for network namespaces and BPF. A failing run ends with the failures, each with the command that
/// runs it alone. Then come a table and a line of the form `N passed, N failed`. A group that broke before its tests
/// could run counts as one failure.
#[derive(Args)]
pub(crate) struct Test {
    /// What to run; without it host, lab, engines and vm
    #[arg(value_name = "SUITE")]
    suites: Vec<Suite>,
    /// Every test of these suites; without a suite, of every suite
    ///
    /// The matrix of engines has every release of Docker and Podman then, in every way. They are Debian's packages, in
    /// folders below `XDG_CACHE_HOME` or in the one that `WSL_MIRROR_ENGINES` names; mmdebstrap makes those that are
    /// missing, some 40 seconds for each of three releases on two cores. And vm runs all of the lab's tests on 6.1 and
    /// 6.12, as `cargo xtask vm` does.
    #[arg(long)]
    all: bool,
    /// Many more rounds of what may go wrong once in a while
    #[arg(long)]
    soak: bool,
    /// Write the matrix of engines into docs/engines.md
    #[arg(long, requires = "all", conflicts_with = "filter")]
    write: bool,
    /// For the test binaries: a filter, `--exact`, `--nocapture`, `--ignored`
    ///
    /// With a filter, a run leaves out format and lints, and vm runs what the filter names instead of its usual tests.
    #[arg(last = true)]
    filter: Vec<String>,
}

impl Test {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let extent = if self.all { Extent::Full } else { Extent::Usual };
        let suites = Suite::of_run(&self.suites, extent);
        if self.write && !suites.contains(&Suite::Engines) {
            bail!("--write is for the matrix of engines: cargo xtask test engines --all --write");
        }
        if suites.iter().any(|suite| suite.needs_root()) && !is_root() {
            bail!(
                "the lab builds network namespaces and loads BPF programs, which takes root, and this is not \
                 root. Run this as root (`sudo -E env \"PATH=$PATH\" cargo xtask test`), or run the tests that \
                 need no root: `cargo xtask test host`"
            );
        }
        let mut needs = vec![Needs::Build];
        for suite in &suites {
            if !needs.contains(&suite.needs()) {
                needs.push(suite.needs());
            }
        }
        for needs in needs {
            if matches!(setup::ensure(needs)?, Outcome::Missing) {
                return Ok(ExitCode::Missing);
            }
        }
        Run { options: &self, extent, groups: Vec::new(), tables: Vec::new() }.all(&suites)
    }

    /// The command that repeats a suite of this run.
    fn rerun(&self, suite: &str) -> Rerun {
        let soak = if self.soak { " --soak" } else { "" };
        Rerun::tests(&format!("cargo xtask test {suite}{soak}")).with(&self.filter)
    }

    fn has_filter(&self) -> bool {
        !filters(&self.filter).is_empty()
    }
}

/// A run, as it goes on.
struct Run<'a> {
    options: &'a Test,
    extent: Extent,
    groups: Vec<Group>,
    /// The tables of suites that have one of their own.
    tables: Vec<String>,
}

impl Run<'_> {
    fn all(mut self, suites: &[Suite]) -> Result<ExitCode> {
        let checks = suites.contains(&Suite::Host) && !self.options.has_filter();
        if checks {
            self.groups.extend(host::checks());
        }
        let needs_product = |suite: &Suite| !matches!(suite, Suite::Host | Suite::Fuzz);
        // Once, and before the tests: a lab that ran an older binary would prove nothing.
        let product = (checks || suites.iter().any(needs_product)).then(|| self.product()).flatten();
        for suite in suites {
            self.suite(*suite, product.as_deref())?;
        }
        for table in &self.tables {
            print!("\n{table}");
        }
        Ok(conclude(&self.groups, &self.options.filter))
    }

    fn product(&mut self) -> Option<PathBuf> {
        heading("release build");
        let started = Instant::now();
        let product = build::product(Profile::Release);
        if let Err(error) = &product {
            eprintln!("xtask: {error:#}");
        }
        let rerun = Rerun::Command("cargo xtask build".to_owned());
        let verdict = Verdict::of(product.is_ok());
        self.groups.push(Group::without_tests("release build", verdict, started.elapsed(), rerun));
        product.ok()
    }

    fn suite(&mut self, suite: Suite, product: Option<&Path>) -> Result<()> {
        let options = self.options;
        match (suite, product) {
            (Suite::Host, _) => {
                heading("unit tests");
                let group = tests("unit tests", &mut host::tests(), &options.filter, options.rerun("host"))?;
                self.groups.push(group);
            }
            (Suite::Fuzz, _) => self.groups.extend(fuzz::run(&options.filter, &options.rerun("fuzz"))),
            (Suite::Lab, Some(product)) => self.groups.push(lab::run(options, product)?),
            (Suite::Engines, Some(product)) => {
                let (group, rows) = lab::engines(options, self.extent, product)?;
                self.groups.push(group);
                self.tables.push(engines::table(&rows));
            }
            (Suite::Vm, Some(product)) => self.machines(product),
            (Suite::Dist, Some(product)) => self.groups.push(lab::dist(options, product)?),
            (Suite::Lab | Suite::Engines | Suite::Vm | Suite::Dist, None) => {
                let (name, rerun) = (suite.name(), options.rerun(suite.name()));
                self.groups.push(Group::without_tests(name, Verdict::NotRun, Duration::ZERO, rerun));
            }
        }
        Ok(())
    }

    /// Runs the lab's tests on other kernels. A failure before they can run is one failure more, and takes nothing
    /// from the results of other suites.
    fn machines(&mut self, product: &Path) {
        heading("vm");
        let started = Instant::now();
        let options = self.options;
        let group =
            |verdict| vec![Group::without_tests("vm", verdict, started.elapsed(), options.rerun("vm"))];
        let (selection, choice) = match self.extent {
            Extent::Full => (Selection::Default, vm::Choice::All),
            Extent::Usual => {
                (Selection::Named(vec![vm::MOST_DIFFERENT.to_owned()]), vm::Choice::DifferByKernel)
            }
        };
        let kernels = match vm::possible().and_then(|()| vm::kernels(&selection)) {
            Ok(kernels) => kernels,
            // The user did not name this suite, and the results of the others stand without it.
            Err(error) if !options.suites.contains(&Suite::Vm) && env::var_os("CI").is_none() => {
                println!("no virtual machines here: {error:#}");
                self.groups.extend(group(Verdict::NotHere));
                return;
            }
            Err(error) => {
                eprintln!("xtask: {error:#}");
                self.groups.extend(group(Verdict::Failed));
                return;
            }
        };
        let effort = Effort { soak: options.soak, choice, arguments: &options.filter };
        match vm::build_tests(product).and_then(|built| vm::run(&kernels, &built, &effort)) {
            Ok(groups) => {
                self.tables.push(vm::matrix(&kernels, &groups));
                self.groups.extend(groups);
            }
            Err(error) => {
                eprintln!("xtask: {error:#}");
                self.groups.extend(group(Verdict::Failed));
            }
        }
    }
}

/// Runs tests with these arguments for their binaries, passes their output on, and counts.
fn tests(name: &str, command: &mut Command, arguments: &[String], rerun: Rerun) -> Result<Group> {
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
        ..Group::without_tests(name, Verdict::of(status.success()), started.elapsed(), rerun)
    })
}

fn heading(name: &str) {
    println!("\n=== {name} ===");
    // Before the output of a child, which does not go through our buffer.
    let _ = std::io::stdout().flush();
}
