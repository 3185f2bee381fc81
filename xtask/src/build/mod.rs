//! `cargo xtask build`, and everything that a task builds.

pub(crate) mod cargo;

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    exit_code::ExitCode,
    setup::{self, Needs, Outcome},
};

/// Build `wsl-mirror`, the eBPF object inside
#[derive(Args)]
pub(crate) struct Build {
    /// Without optimisation, with debug assertions (the object is the same)
    #[arg(long)]
    debug: bool,
}

impl Build {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        if matches!(setup::ensure(Needs::Build)?, Outcome::Missing) {
            return Ok(ExitCode::Missing);
        }
        let profile = if self.debug { Profile::Debug } else { Profile::Release };
        println!("{}", product(profile)?.display());
        Ok(ExitCode::Success)
    }
}

/// The package whose tests load the program and build networks.
pub(crate) const LAB_PACKAGE: &str = "wsl-mirror-lab";

/// How the product is built. The object inside is always optimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

/// Cargo names what it made on standard output; the compiler's messages stay readable.
const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// Builds `wsl-mirror` and returns where cargo put it.
pub(crate) fn product(profile: Profile) -> Result<PathBuf> {
    package("wsl-mirror", profile)
}

/// Builds a package whose one program has its name, and returns where cargo put that.
pub(crate) fn package(name: &str, profile: Profile) -> Result<PathBuf> {
    let mut cargo = cargo::command("build");
    cargo.args(["--package", name, MESSAGES]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let binary = executables(name, &mut cargo)?.into_iter().rfind(|path| path.ends_with(name));
    binary.with_context(|| format!("cargo built {name} and did not say where it put the binary"))
}

/// Builds `wsl-mirror` with everything linked in, and returns where cargo put it.
///
/// With glibc, since musl is not available everywhere. glibc loads libraries for users and host names, and the product
/// asks for neither.
pub(crate) fn static_product() -> Result<PathBuf> {
    // Only the last link differs from other release builds. The binary takes their place until the next one.
    let mut cargo = cargo::command("rustc");
    cargo.args(["--release", "--package", "wsl-mirror", "--bin", "wsl-mirror", MESSAGES]);
    cargo.args(["--", "-Ctarget-feature=+crt-static"]);
    let binary =
        executables("wsl-mirror", &mut cargo)?.into_iter().rfind(|path| path.ends_with("wsl-mirror"));
    binary.context("cargo built wsl-mirror and did not say where it put the binary")
}

/// Builds the test binaries of a package, and returns them with the names of their targets.
pub(crate) fn tests(package: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = cargo::command("test");
    cargo.args(["--release", "--package", package, "--tests", "--no-run", MESSAGES]);
    let library = package.replace('-', "_");
    let tests = executables(package, &mut cargo)?.into_iter().filter_map(|path| {
        // <target>-<hash>. Cargo also builds the package's programs, which have no hash, and the library's unit tests.
        let (name, _) = path.file_name()?.to_str()?.rsplit_once('-')?;
        let is_test = path.parent()?.ends_with("deps") && name != library;
        is_test.then(|| (name.to_owned(), path.clone()))
    });
    Ok(tests.collect())
}

/// Runs a cargo that builds with [`MESSAGES`], and returns the programs that it made.
fn executables(package: &str, cargo: &mut Command) -> Result<Vec<PathBuf>> {
    let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting cargo")?;
    let mut found = Vec::new();
    for line in BufReader::new(child.stdout.take().context("cargo's output is piped")?).lines() {
        found.extend(executable(&line.context("reading cargo's messages")?));
    }
    let status = child.wait().context("waiting for cargo")?;
    if !status.success() {
        bail!("building {package} ended with {status}; the compiler's messages are above");
    }
    Ok(found)
}

/// The path of a binary, if this message of cargo's has one. Only cargo itself knows every `target-dir` and
/// `build.target`. Its messages are JSON objects, one a line, and one field is of use here.
fn executable(message: &str) -> Option<PathBuf> {
    if !message.starts_with(r#"{"reason":"compiler-artifact""#) {
        return None;
    }
    let (_, rest) = message.split_once(r#""executable":""#)?;
    let (path, _) = rest.split_once('"')?;
    Some(PathBuf::from(path.replace(r"\\", r"\")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_where_cargo_says() {
        let message = r#"{"reason":"compiler-artifact","package_id":"p","target":{"kind":["bin"]},"executable":"/t/release/wsl-mirror","fresh":true}"#;
        assert_eq!(executable(message), Some(PathBuf::from("/t/release/wsl-mirror")));
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        let library = r#"{"reason":"compiler-artifact","executable":null,"fresh":true}"#;
        assert_eq!(executable(library), None);
    }
}
