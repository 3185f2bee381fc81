//! `cargo xtask test`

use std::{
    env,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    cargo::{self, Profile},
    dist, engines,
    exit_code::ExitCode,
    fuzz, libtest,
    report::{self, Group, Verdict},
    root::is_root,
    setup::{self, Needs, Outcome},
    vm::{self, Selection},
};

/// The packages whose tests need no root and touch nothing outside of their process.
const HOST_PACKAGES: [&str; 5] =
    ["wsl-mirror-core", "wsl-mirror", "xtask", "xtask-lab", "wsl-mirror-toolchain"];
/// How many of the lab's networks run at once, unless `RUST_TEST_THREADS` says otherwise: each has an engine
/// of its own, and more of them than cores make the timeouts of a scenario a matter of luck.
const LAB_THREADS: &str = "2";
/// The Rust whose rustfmt and clippy this repository is kept clean with. What another release finds is shown
/// and does not fail the tests: new releases bring new lints.
const LINTED_WITH: &str = "1.95";

/// Run the tests: on the host, in the lab, with engines of other releases, then in the lab on other kernels
///
/// The lab needs root, for network namespaces and BPF. Ends with a table and a line of the form `N passed, N failed`.
/// A group that broke before its tests could run counts as one failure.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch on the command line")]
pub(crate) struct Test {
    /// Only format, lints and unit tests: what needs no root
    #[arg(long)]
    host: bool,
    /// Only packets and scenarios on this kernel: what needs root
    #[arg(long)]
    lab: bool,
    /// Only packets and scenarios in virtual machines: `cargo xtask vm` without options
    #[arg(long)]
    vm: bool,
    /// Only the matrix of engines, and all of it: every release of Docker and Podman, in every way
    ///
    /// They are Debian's packages, in folders below `XDG_CACHE_HOME` or in the one that `WSL_MIRROR_ENGINES` names; what
    /// is missing there is made by mmdebstrap, some 40 seconds for each of three releases on two cores.
    #[arg(long)]
    engines: bool,
    /// And write what it came to into docs/engines.md
    #[arg(long, requires = "engines")]
    write: bool,
    /// Only fuzz what reads what others wrote, each target for a minute
    #[arg(long)]
    fuzz: bool,
    /// Only the package and the tarball: made, installed, tried and upgraded in folders of Debian's releases
    #[arg(long)]
    dist: bool,
    /// Many more rounds of what may go wrong once in a while
    #[arg(long)]
    soak: bool,
    /// For the test binaries: a filter, `--nocapture`, `--ignored`
    #[arg(last = true)]
    args: Vec<String>,
}

impl Test {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        // A minute each is too much for every time, and too little to find what years have not: fuzzing is extra.
        let all = !(self.host || self.lab || self.engines || self.vm || self.fuzz || self.dist);
        let (host, lab, vm) = (self.host || all, self.lab || all, self.vm || all);
        let engines = self.engines || all;
        if (lab || engines || self.dist) && !is_root() {
            bail!(
                "the lab builds network namespaces and loads BPF programs, which takes root, and this is not \
                 root. Run this as root (`sudo -E env \"PATH=$PATH\" cargo xtask test`), or run the tests that \
                 need no root: `cargo xtask test --host`"
            );
        }
        let needs = match (lab || engines || self.dist, vm) {
            (_, true) => Needs::Vm,
            (true, false) => Needs::Lab,
            (false, false) => Needs::Build,
        };
        if self.fuzz && matches!(setup::ensure(Needs::Fuzz)?, Outcome::Missing) {
            return Ok(ExitCode::Missing);
        }
        if matches!(setup::ensure(needs)?, Outcome::Missing) {
            return Ok(ExitCode::Missing);
        }

        let mut groups = Vec::new();
        if host {
            groups.push(check("format", "fmt", &["--all", "--check"]));
            groups.push(check(
                "lints",
                "clippy",
                &["--workspace", "--all-targets", "--release", "--", "-D", "warnings"],
            ));
        }
        // Once, and before the tests: a lab that ran an older binary would prove nothing.
        let started = Instant::now();
        heading("release build");
        let binary = cargo::build_product(Profile::Release);
        if let Err(error) = &binary {
            eprintln!("xtask: {error:#}");
        }
        groups.push(Group::without_tests("release build", Verdict::of(binary.is_ok()), started.elapsed()));
        if host {
            heading("unit tests");
            groups.push(self.run("unit tests", &mut host_tests(), &[])?);
        }
        if lab {
            heading("lab");
            // What needs other engines is a group of its own.
            let but = engines::TESTS.map(|tests| ["--skip", tests]);
            groups.push(match &binary {
                Ok(binary) => self.run("lab", &mut lab_tests(binary, self.soak), but.as_flattened())?,
                Err(_) => Group::without_tests("lab", Verdict::NotRun, Duration::ZERO),
            });
        }
        let (mut matrix, mut machines) = (None, None);
        if engines {
            groups.push(match &binary {
                Ok(binary) => {
                    let (group, rows) = self.engines(binary)?;
                    matrix = Some(rows);
                    group
                }
                Err(_) => Group::without_tests("engines", Verdict::NotRun, Duration::ZERO),
            });
        }
        if vm {
            match &binary {
                Ok(binary) => {
                    let (group, table) = self.in_machines(binary);
                    groups.extend(group);
                    machines = table;
                }
                Err(_) => groups.push(Group::without_tests("vm", Verdict::NotRun, Duration::ZERO)),
            }
        }
        if self.fuzz {
            groups.extend(fuzz());
        }
        if self.dist {
            groups.push(match &binary {
                Ok(binary) => self.dist(binary)?,
                Err(_) => Group::without_tests("dist", Verdict::NotRun, Duration::ZERO),
            });
        }
        if let Some(rows) = matrix {
            print!("\n{}", engines::table(&rows));
        }
        report::print_failures(&groups);
        if let Some(machines) = machines {
            print!("\n{machines}");
        }
        report::print_table(&groups);
        Ok(report::conclude(&groups, &self.args))
    }

    /// Runs the matrix of engines; returns what the tests came to, and what they found out.
    fn engines(&self, product: &Path) -> Result<(Group, Vec<engines::Row>)> {
        let started = Instant::now();
        heading("engines");
        let folder = engines::ensure(self.engines)?;
        let results = product.parent().context("the product lies in no folder")?.join("engines");
        engines::empty(&results)?;
        let mut cargo = lab_tests(product, self.soak);
        cargo
            .args(["--test", engines::BINARY])
            .env(engines::OVERRIDE, folder)
            .env(engines::RESULTS, &results);
        let chosen = if self.engines { &["--include-ignored"][..] } else { &[] };
        let group = self.run("engines", &mut cargo, chosen)?;
        let rows = engines::read(&results)?;
        if self.write {
            // A row that a filter has left out, or whose test broke off, would be missing there.
            if !self.args.is_empty() {
                bail!("--write is for the whole matrix, and this was a part of it");
            }
            println!("written: {}", engines::write(&rows)?.display());
        }
        Ok((Group { time: started.elapsed(), ..group }, rows))
    }

    /// Makes what is given to others, and tries it.
    fn dist(&self, product: &Path) -> Result<Group> {
        let started = Instant::now();
        heading("dist");
        let made = match dist::make_for_tests() {
            Ok(made) => made,
            Err(error) => {
                eprintln!("xtask: {error:#}");
                return Ok(Group::without_tests("dist", Verdict::Failed, started.elapsed()));
            }
        };
        let mut cargo = lab_tests(product, self.soak);
        cargo.args(["--test", dist::BINARY]).env(dist::OVERRIDE, &made.folder);
        let group = self.run("dist", &mut cargo, &["--ignored", dist::TESTS])?;
        Ok(Group { time: started.elapsed(), ..group })
    }

    /// Runs the lab's tests on other kernels; returns also a table of these. What fails before they can run is one
    /// failure more, and takes nothing from what the others found.
    fn in_machines(&self, binary: &Path) -> (Vec<Group>, Option<String>) {
        heading("vm");
        let started = Instant::now();
        let kernels = match vm::possible().and_then(|()| vm::kernels(&Selection::Default)) {
            Ok(kernels) => kernels,
            // Where no machine can be had, and nobody has asked for one, the other tests say what they say.
            Err(error) if !self.vm && env::var_os("CI").is_none() => {
                println!("no virtual machines here: {error:#}");
                return (vec![Group::without_tests("vm", Verdict::NotHere, started.elapsed())], None);
            }
            Err(error) => {
                eprintln!("xtask: {error:#}");
                return (vec![Group::without_tests("vm", Verdict::Failed, started.elapsed())], None);
            }
        };
        let run = || -> Result<Vec<Group>> {
            vm::run(&kernels, &vm::build(binary)?, &vm::Effort { soak: self.soak, arguments: &self.args })
        };
        match run() {
            Ok(groups) => {
                let table = vm::matrix(&kernels, &groups);
                (groups, Some(table))
            }
            Err(error) => {
                eprintln!("xtask: {error:#}");
                (vec![Group::without_tests("vm", Verdict::Failed, started.elapsed())], None)
            }
        }
    }

    /// Runs tests, with `more` for their binaries, passes their output on and counts.
    fn run(&self, name: &'static str, command: &mut Command, more: &[&str]) -> Result<Group> {
        let started = Instant::now();
        // Without it, the first binary that fails hides what the others would have said.
        command.arg("--no-fail-fast");
        if !(self.args.is_empty() && more.is_empty()) {
            command.arg("--").args(more).args(&self.args);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: starting cargo test"))?;
        let output = child.stdout.take().context("the tests' output is piped")?;
        let told = libtest::stream(output, std::io::stdout())
            .with_context(|| format!("{name}: reading the tests' output"))?;
        let status = child.wait().with_context(|| format!("{name}: waiting for cargo test"))?;
        Ok(Group {
            count: told.count,
            failures: told.failures,
            ..Group::without_tests(name, Verdict::of(status.success()), started.elapsed())
        })
    }
}

/// Fuzzes every target; that it could not be done is a failure among others.
fn fuzz() -> Vec<Group> {
    let started = Instant::now();
    fuzz::run().unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        vec![Group::without_tests("fuzz", Verdict::Failed, started.elapsed())]
    })
}

fn host_tests() -> Command {
    let mut cargo = cargo::command("test");
    // In release, as everything here: what the release build made serves again, and a first run takes half as long.
    cargo.arg("--release").args(HOST_PACKAGES.iter().flat_map(|package| ["--package", package]));
    cargo
}

fn lab_tests(binary: &Path, soak: bool) -> Command {
    let mut cargo = cargo::command("test");
    cargo.args(["--release", "--package", cargo::LAB_PACKAGE]).env("WSL_MIRROR_BIN", binary);
    if soak {
        cargo.env(vm::SOAK, "1");
    }
    if env::var_os("RUST_TEST_THREADS").is_none() {
        cargo.env("RUST_TEST_THREADS", LAB_THREADS);
    }
    cargo
}

/// Runs a component of the toolchain that may not be there: Debian's cargo comes without rustfmt and clippy.
/// That is no failure, also not in CI: the tests are to run on a machine that has only a cargo.
fn check(name: &'static str, subcommand: &str, args: &[&str]) -> Group {
    heading(name);
    let started = Instant::now();
    let verdict = match cargo::component(subcommand) {
        None => {
            println!("this toolchain has no `cargo {subcommand}`");
            Verdict::NotHere
        }
        Some(version) => {
            let clean = cargo::command(subcommand)
                .args(args)
                .stdin(Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
            let ours = is_of_release(&release(), LINTED_WITH);
            if !clean && !ours {
                println!(
                    "{version}: not the release ({LINTED_WITH}) that this repository is kept clean with"
                );
            }
            if clean || ours { Verdict::of(clean) } else { Verdict::Findings }
        }
    };
    Group::without_tests(name, verdict, started.elapsed())
}

/// rustfmt and clippy number their releases their own way (1.9, 0.1.95); cargo's number dates them.
fn release() -> String {
    // cargo and rustc are released together and say the same number.
    let output = cargo::command("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Whether `cargo 1.95.0 (…)` is 1.95.
fn is_of_release(version: &str, release: &str) -> bool {
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    number.strip_prefix(release).is_some_and(|patch| patch.starts_with('.'))
}

fn heading(name: &str) {
    println!("\n=== {name} ===");
    // Before the output of a child, which does not go through our buffer.
    let _ = std::io::stdout().flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_compared_by_number() {
        assert!(is_of_release("cargo 1.95.0 (59807616e 2026-04-14)", "1.95"));
        assert!(!is_of_release("cargo 1.9.0", "1.95"));
        assert!(!is_of_release("cargo 1.950.0", "1.95"));
        assert!(!is_of_release("", "1.95"));
    }
}
