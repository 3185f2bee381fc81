//! Finds engines: in the folders that `cargo xtask test` makes (`xtask/src/engines/`), or on this machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use wsl_mirror_lab::{
    DockerOptions,
    checks::OrPanic as _,
    process::{COMMAND_LIMIT, run},
};

use super::configuration::Release;

/// An engine that can be run.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The folder with its files; none if it is this machine's.
    pub root: Option<PathBuf>,
    /// What is installed there.
    pub version: String,
}

/// The engine, or why it cannot be had.
#[track_caller]
pub fn find(release: &Release) -> Result<Installed, String> {
    let folder = folder().join(release.suite);
    let root = folder.join("root");
    if root.is_dir() {
        let manifest = folder.join("manifest");
        let manifest = fs::read_to_string(&manifest)
            .with_context(|| format!("reading {}", manifest.display()))
            .or_panic();
        let line = manifest.lines().find_map(|line| line.strip_prefix(release.package)?.strip_prefix(' '));
        match line {
            Some(version) if release.is(version) => {
                return Ok(Installed { root: Some(root), version: version.to_owned() });
            }
            Some(version) => {
                return Err(format!("{} has {} {version} by now", release.suite, release.package));
            }
            None => return Err(format!("no {} in {}", release.package, root.display())),
        }
    }
    let here = (release.package == "docker.io").then(machines_docker).flatten();
    match here {
        Some(version) if release.is(&version) => Ok(Installed { root: None, version }),
        _ => Err(format!(
            "there is no {}; `cargo xtask test engines --all` makes it on a Debian that reaches its mirror",
            folder.display()
        )),
    }
}

/// As `xtask/src/engines/cache.rs` has it.
#[track_caller]
fn folder() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = set("WSL_MIRROR_ENGINES") {
        return named;
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    cache.context("HOME is not set, nor XDG_CACHE_HOME").or_panic().join("wsl-mirror/engines")
}

/// The version of this machine's dockerd: `Docker version 20.10.24+dfsg1, build 5d6db84`.
pub fn machines_docker() -> Option<String> {
    let dockerd = DockerOptions::default().dockerd;
    Path::new(&dockerd).exists().then_some(())?;
    let said = run(Command::new(dockerd).arg("--version"), COMMAND_LIMIT).ok()?.success().ok()?.stdout;
    Some(said.split_whitespace().nth(2)?.trim_end_matches(',').to_owned())
}
