//! `cargo xtask test`

use std::{
    env, fmt,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    cargo::{self, Profile},
    exit_code::ExitCode,
    libtest::{self, Count},
    root::is_root,
    setup::{self, Needs, Outcome},
    table,
};

/// The packages whose tests need no root and touch nothing outside of their process.
const HOST_PACKAGES: [&str; 5] =
    ["wsl-mirror-ebpf", "wsl-mirror", "xtask", "xtask-lab", "wsl-mirror-toolchain"];
/// The package whose tests load the program and build networks.
const LAB_PACKAGE: &str = "wsl-mirror-lab";
/// How many of the lab's networks run at once, unless `RUST_TEST_THREADS` says otherwise: each has an engine
/// of its own, and more of them than cores make the timeouts of a scenario a matter of luck.
const LAB_THREADS: &str = "2";
/// The Rust whose rustfmt and clippy this repository is kept clean with. What another release finds is shown
/// and does not fail the tests: new releases bring new lints.
const LINTED_WITH: &str = "1.95";

/// Run the tests: on the host, then in the lab
///
/// The lab needs root, for network namespaces and BPF. Ends with a table and a line of the form
/// `N passed, N failed`. A group that broke before its tests could run counts as one failure.
#[derive(Args)]
pub(crate) struct Test {
    /// Only format, lints and unit tests: what needs no root
    #[arg(long, conflicts_with = "lab")]
    host: bool,
    /// Only packets and scenarios: what needs root
    #[arg(long)]
    lab: bool,
    /// For the test binaries: a filter, `--nocapture`, `--ignored`
    #[arg(last = true)]
    args: Vec<String>,
}

impl Test {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let (host, lab) = (!self.lab, !self.host);
        if lab && !is_root() {
            bail!(
                "the lab builds network namespaces and loads BPF programs, which takes root, and this is not \
                 root. Run this as root (`sudo -E env \"PATH=$PATH\" cargo xtask test`), or run the tests that \
                 need no root: `cargo xtask test --host`"
            );
        }
        if matches!(setup::ensure(if lab { Needs::Lab } else { Needs::Build })?, Outcome::Missing) {
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
            groups.push(self.run("unit tests", &mut host_tests())?);
        }
        if lab {
            groups.push(match &binary {
                Ok(binary) => self.run("lab", &mut lab_tests(binary))?,
                Err(_) => Group::without_tests("lab", Verdict::NotRun, Duration::ZERO),
            });
        }
        Ok(report(&groups))
    }

    /// Runs tests, passes their output on and counts.
    fn run(&self, name: &'static str, command: &mut Command) -> Result<Group> {
        heading(name);
        let started = Instant::now();
        // Without it, the first binary that fails hides what the others would have said.
        command.arg("--no-fail-fast");
        if !self.args.is_empty() {
            command.arg("--").args(&self.args);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: starting cargo test"))?;
        let output = child.stdout.take().context("the tests' output is piped")?;
        let count = libtest::stream(output, std::io::stdout())
            .with_context(|| format!("{name}: reading the tests' output"))?;
        let status = child.wait().with_context(|| format!("{name}: waiting for cargo test"))?;
        Ok(Group { name, verdict: Verdict::of(status.success()), count, time: started.elapsed() })
    }
}

fn host_tests() -> Command {
    let mut cargo = cargo::command("test");
    // In release, as everything here: what the release build made serves again, and a first run takes half as long.
    cargo.arg("--release").args(HOST_PACKAGES.iter().flat_map(|package| ["--package", package]));
    cargo
}

fn lab_tests(binary: &Path) -> Command {
    let mut cargo = cargo::command("test");
    cargo.args(["--release", "--package", LAB_PACKAGE]).env("WSL_MIRROR_BIN", binary);
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

/// What one group came to.
struct Group {
    name: &'static str,
    verdict: Verdict,
    count: Count,
    time: Duration,
}

impl Group {
    fn without_tests(name: &'static str, verdict: Verdict, time: Duration) -> Self {
        Self { name, verdict, count: Count::default(), time }
    }

    /// What the last line counts. A group that failed without a failing test (it did not compile, it was
    /// killed) is one failure, so that `0 failed` means what it says.
    fn counted(&self) -> Count {
        let broke = matches!(self.verdict, Verdict::Failed | Verdict::NotRun) && self.count.failed == 0;
        Count { failed: self.count.failed + u32::from(broke), ..self.count }
    }

    fn row(&self) -> [String; 6] {
        let Count { passed, failed, ignored } = self.count;
        let number = |n: u32| if n == 0 { "·".to_owned() } else { n.to_string() };
        let time = format!("{:.1} s", self.time.as_secs_f32());
        [
            self.name.to_owned(),
            self.verdict.to_string(),
            number(passed),
            number(failed),
            number(ignored),
            time,
        ]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Failed,
    /// The lab has nothing to run without a binary.
    NotRun,
    /// The toolchain lacks the component.
    NotHere,
    /// Another release of the component than ours objects.
    Findings,
}

impl Verdict {
    fn of(success: bool) -> Self {
        if success { Self::Ok } else { Self::Failed }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Failed => "FAILED",
            Self::NotRun => "NOT RUN",
            Self::NotHere => "not installed",
            Self::Findings => "findings",
        })
    }
}

/// Prints the table and the last line.
fn report(groups: &[Group]) -> ExitCode {
    let mut sum = Count::default();
    for group in groups {
        sum += group.counted();
    }
    let rows: Vec<_> = groups.iter().map(Group::row).collect();
    let heading = ["group", "result", "passed", "failed", "ignored", "time"];
    println!("\n{}\n{} passed, {} failed", table::render(heading, &rows, 2), sum.passed, sum.failed);
    if sum.failed == 0 { ExitCode::Success } else { ExitCode::TestsFailed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(verdict: Verdict, passed: u32, failed: u32) -> Group {
        Group { name: "g", verdict, count: Count { passed, failed, ignored: 0 }, time: Duration::ZERO }
    }

    #[test]
    fn a_group_that_does_not_compile_is_a_failure() {
        assert_eq!(group(Verdict::Failed, 3, 0).counted().failed, 1);
        assert_eq!(group(Verdict::Failed, 3, 2).counted().failed, 2);
        assert_eq!(group(Verdict::NotRun, 0, 0).counted().failed, 1);
        assert_eq!(report(&[group(Verdict::Ok, 1, 0), group(Verdict::Failed, 0, 0)]), ExitCode::TestsFailed);
    }

    #[test]
    fn what_is_not_installed_is_not_a_failure() {
        let groups =
            [group(Verdict::NotHere, 0, 0), group(Verdict::Findings, 0, 0), group(Verdict::Ok, 5, 0)];
        assert_eq!(report(&groups), ExitCode::Success);
    }

    #[test]
    fn the_release_is_compared_by_number() {
        assert!(is_of_release("cargo 1.95.0 (59807616e 2026-04-14)", "1.95"));
        assert!(!is_of_release("cargo 1.9.0", "1.95"));
        assert!(!is_of_release("cargo 1.950.0", "1.95"));
        assert!(!is_of_release("", "1.95"));
    }
}
