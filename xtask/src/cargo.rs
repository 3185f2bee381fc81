//! The cargo that runs us, run again.

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use wsl_mirror_toolchain::tools_dir;

use crate::{
    progress,
    setup::{self, program},
};

/// The package whose tests load the program and build networks.
pub(crate) const LAB_PACKAGE: &str = "wsl-mirror-lab";

/// How the product is built. The object inside is always optimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

/// Has cargo say what it made; people still read what the compiler says.
const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// The root of the repository, wherever in it the task was started.
pub(crate) fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// `cargo <subcommand>` in the root of the workspace.
pub(crate) fn command(subcommand: &str) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = with_our_toolchain(Command::new(&cargo));
    command.arg(subcommand).current_dir(workspace());
    command
}

/// A command that calls cargo, or is one: with the compiler that we are built with, and without what `cargo run` has
/// told us.
pub(crate) fn with_our_toolchain(mut command: Command) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let path = env::var_os("PATH").unwrap_or_default();
    // Cargo takes rustc and clippy from PATH, where setup may just have put a second rustc before the one
    // that all was built with so far. Those beside this cargo belong to it.
    let folder = Path::new(&cargo).parent().filter(|folder| folder.is_absolute());
    let folders = folder.map(|folder| [folder.to_path_buf()].into_iter().chain(env::split_paths(&path)));
    // A folder with a colon in its name cannot be on PATH; then PATH stays as it is.
    let beside_cargo = folders.and_then(|folders| env::join_paths(folders).ok());
    command.envs(setup::environment(&beside_cargo.unwrap_or(path)));
    // `cargo run` describes this package to us; a build script that reads the environment must not be told
    // that it is ours, and would be run again each time it is told differently.
    for (name, _) in env::vars_os() {
        let package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| package.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// Builds `wsl-mirror` and returns where cargo put it.
pub(crate) fn build_product(profile: Profile) -> Result<PathBuf> {
    build("wsl-mirror", profile)
}

/// Builds a package whose one program has its name, and returns where cargo put that.
pub(crate) fn build(package: &str, profile: Profile) -> Result<PathBuf> {
    let mut cargo = command("build");
    cargo.args(["--package", package, MESSAGES]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let binary = executables(package, &mut cargo)?.into_iter().rfind(|path| path.ends_with(package));
    binary.with_context(|| format!("cargo built {package} and did not say where it put the binary"))
}

/// Builds `wsl-mirror` with everything linked in, and returns where cargo put it.
///
/// With glibc, as no musl is to be had everywhere: it asks neither for users nor for names of hosts, which are what glibc
/// would load libraries for.
pub(crate) fn build_static() -> Result<PathBuf> {
    // Only the program's own link differs: all that it is made of is what every release build has. So this takes the
    // place of the other one, until that is built again.
    let mut cargo = command("rustc");
    cargo.args(["--release", "--package", "wsl-mirror", "--bin", "wsl-mirror", MESSAGES]);
    cargo.args(["--", "-Ctarget-feature=+crt-static"]);
    let binary =
        executables("wsl-mirror", &mut cargo)?.into_iter().rfind(|path| path.ends_with("wsl-mirror"));
    binary.context("cargo built wsl-mirror and did not say where it put the binary")
}

/// A program that is installed by cargo: the user's own, or one beside the other tools, built if it is not there. `group`
/// is what it is wanted for.
pub(crate) fn tool(group: &str, name: &str, release: &str) -> Result<PathBuf> {
    if let Some(path) = program(name) {
        return Ok(path);
    }
    let tools = tools_dir()
        .with_context(|| format!("no folder to install {name} into: HOME is not set, nor XDG_CACHE_HOME"))?;
    let path = tools.join("bin").join(name);
    if !path.is_file() {
        let mut install = command("install");
        install.args([name, "--version", release, "--locked", "--root"]).arg(&tools);
        let step = format!("install {name} {release}");
        progress::step(group, &step, &mut install, &tools.join("../setup.log"))?;
    }
    Ok(path)
}

/// What rustc builds for unless told.
pub(crate) fn host() -> Result<String> {
    let output =
        with_our_toolchain(Command::new("rustc")).arg("-vV").output().context("asking rustc for its host")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

/// Builds the test binaries of a package, and returns them with the names of their targets.
pub(crate) fn build_tests(package: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = command("test");
    cargo.args(["--release", "--package", package, "--tests", "--no-run", MESSAGES]);
    let library = package.replace('-', "_");
    let tests = executables(package, &mut cargo)?.into_iter().filter_map(|path| {
        // <target>-<hash>; beside the tests cargo builds the package's programs, which have no hash, and its
        // library's unit tests.
        let (name, _) = path.file_name()?.to_str()?.rsplit_once('-')?;
        let is_test = path.parent()?.ends_with("deps") && name != library;
        is_test.then(|| (name.to_owned(), path.clone()))
    });
    Ok(tests.collect())
}

/// Runs a cargo that builds, told to say so in JSON ([`MESSAGES`]), and returns the programs that it made.
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

/// Where a binary was put, if this message of cargo's says so. Asking cargo is the only way that is right
/// with every `target-dir` and `build.target` there is; its messages are one JSON object a line, of which one
/// field is needed.
fn executable(message: &str) -> Option<PathBuf> {
    if !message.starts_with(r#"{"reason":"compiler-artifact""#) {
        return None;
    }
    let (_, rest) = message.split_once(r#""executable":""#)?;
    let (path, _) = rest.split_once('"')?;
    Some(PathBuf::from(path.replace(r"\\", r"\")))
}

/// Whether cargo has a subcommand that comes as a component of its own (`fmt`, `clippy`), and its version.
pub(crate) fn component(subcommand: &str) -> Option<String> {
    let output = command(subcommand).arg("--version").stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
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
