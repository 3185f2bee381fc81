//! The cargo that runs us, run again.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use wsl_mirror_toolchain::tools_dir;

use crate::{
    progress,
    setup::{self, program},
};

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

/// A command that calls cargo, or is one: with our compiler, and without the variables that `cargo run` sets.
pub(crate) fn with_our_toolchain(mut command: Command) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let path = env::var_os("PATH").unwrap_or_default();
    // Cargo takes rustc and clippy from PATH, where setup may just have installed a second rustc. Those beside this
    // cargo belong to it.
    let folder = Path::new(&cargo).parent().filter(|folder| folder.is_absolute());
    let folders = folder.map(|folder| [folder.to_path_buf()].into_iter().chain(env::split_paths(&path)));
    // A folder with a colon in its name cannot be on PATH; then PATH stays as it is.
    let beside_cargo = folders.and_then(|folders| env::join_paths(folders).ok());
    command.envs(setup::environment(&beside_cargo.unwrap_or(path)));
    // `cargo run` describes xtask in the environment. A build script would take that for its own package, and run
    // again after every change of it.
    for (name, _) in env::vars_os() {
        let package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| package.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// A program that cargo installs: the user's own, or one beside the other tools, built if it is missing.
pub(crate) fn tool(task: &str, name: &str, release: &str) -> Result<PathBuf> {
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
        progress::command(task, &step, &mut install, &tools.join("../setup.log"))?;
    }
    Ok(path)
}

/// The target that rustc builds for by default.
pub(crate) fn host() -> Result<String> {
    let output =
        with_our_toolchain(Command::new("rustc")).arg("-vV").output().context("asking rustc for its host")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// Whether cargo has a subcommand that comes as a component of its own (`fmt`, `clippy`), and its version.
pub(crate) fn component(subcommand: &str) -> Option<String> {
    let output = command(subcommand).arg("--version").stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
