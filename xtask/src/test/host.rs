//! The suite that needs no root: format, lints and unit tests.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::Result;

use super::{
    cargo_test::tests,
    options::Test,
    report::{Group, Verdict, heading},
    rerun::Rerun,
};
use crate::build::cargo;

/// The packages whose tests need no root and touch nothing outside of their process.
const PACKAGES: [&str; 6] =
    ["wsl-mirror-core", "wsl-mirror-packets", "wsl-mirror", "xtask", "xtask-lab", "wsl-mirror-toolchain"];
/// The Rust whose rustfmt and clippy keep this repository clean. The findings of another release are shown and fail
/// nothing: new releases bring new lints.
const LINTED_WITH: &str = "1.95";

/// Checks that are no tests: what each is called, and its cargo command.
const CHECKS: [(&str, &[&str]); 2] = [
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"]),
];

pub(super) fn checks() -> impl Iterator<Item = Group> {
    CHECKS.into_iter().map(|(name, arguments)| check(name, arguments))
}

pub(super) fn unit_tests() -> Command {
    let mut cargo = cargo::command("test");
    // In release, as everything here: the release build serves again, and a first run takes half as long.
    cargo.arg("--release").args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    cargo
}

/// The test that downloads each package that set-up can unpack, and runs its programs.
const UNPACKED: &str = "every_package_runs_out_of_its_folder";

pub(super) fn unpacked_packages(options: &Test) -> Result<Group> {
    const NAME: &str = "unpacked packages";
    heading(NAME);
    let mut cargo = cargo::command("test");
    cargo.args(["--release", "--package", "xtask", "--lib"]);
    // Filters add to each other: beside the user's own, this one would choose the test.
    let own = ["--ignored"].into_iter().chain((!options.has_filter()).then_some(UNPACKED));
    // libtest takes the flag once.
    let users = options.filter.iter().filter(|word| *word != "--ignored").cloned();
    let arguments: Vec<_> = own.map(str::to_owned).chain(users).collect();
    tests(NAME, &mut cargo, &arguments, options.rerun("dist"))
}

/// Runs a component of the toolchain that may be missing: Debian's cargo comes without rustfmt and clippy. Such a
/// machine runs all other tests, in CI too.
fn check(name: &str, arguments: &[&str]) -> Group {
    heading(name);
    let started = Instant::now();
    let subcommand = arguments[0];
    let verdict = match cargo::component(subcommand) {
        None => {
            println!("this toolchain has no `cargo {subcommand}`");
            Verdict::NotHere
        }
        Some(version) => {
            let status = cargo::command(subcommand).args(&arguments[1..]).stdin(Stdio::null()).status();
            let clean = status.is_ok_and(|status| status.success());
            let ours = is_of_release(&release(), LINTED_WITH);
            if !clean && !ours {
                println!(
                    "{version}: not the release ({LINTED_WITH}) that this repository is kept clean with"
                );
            }
            match (clean, ours) {
                (true, _) => Verdict::Ok,
                (false, true) => Verdict::Failed,
                (false, false) => Verdict::Findings,
            }
        }
    };
    let rerun = Rerun::Command(format!("cargo {}", arguments.join(" ")));
    Group::without_tests(name, verdict, started.elapsed(), rerun)
}

/// rustfmt and clippy number their releases their own way (1.9, 0.1.95); cargo's number dates them.
fn release() -> String {
    // cargo and rustc have the same number.
    let output = cargo::command("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Whether `cargo 1.95.0 (…)` is 1.95.
fn is_of_release(version: &str, release: &str) -> bool {
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    number.strip_prefix(release).is_some_and(|patch| patch.starts_with('.'))
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
