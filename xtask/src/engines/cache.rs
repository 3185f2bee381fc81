//! Where the engines' folders are kept.
//!
//! `<suite>/root` has the files, `<suite>/manifest` what was really installed, and `<suite>/recipe` how it was made:
//! when the project would make it in another way now, it is made anew. A folder without a recipe was put there by
//! somebody, and is taken as it is. `tests/scenarios/engines/installed.rs` looks for them in the same places.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use wsl_mirror_toolchain::tools_dir;

use super::{Suite, recipe::recipe};

/// Names the folder.
pub(crate) const OVERRIDE: &str = "WSL_MIRROR_ENGINES";

/// The folder of all suites.
pub(super) fn folder() -> Result<PathBuf> {
    let named = env::var_os(OVERRIDE).filter(|value| !value.is_empty());
    let own = || Some(tools_dir()?.parent()?.join("engines"));
    let folder = named.map(PathBuf::from).or_else(own);
    let folder = folder.with_context(|| {
        format!("no folder for engines: HOME is not set, nor XDG_CACHE_HOME, nor {OVERRIDE}")
    })?;
    std::path::absolute(&folder).with_context(|| format!("{}: no path", folder.display()))
}

/// What is installed in the folder of a suite, if it is there and made as the project would make it now.
pub(super) fn find(folder: &Path, suite: &Suite) -> Option<Manifest> {
    let folder = folder.join(suite.name);
    let current = fs::read_to_string(folder.join("recipe")).map_or(true, |made| made == recipe(suite));
    if !current || !folder.join("root").is_dir() {
        return None;
    }
    Some(Manifest::parse(&fs::read_to_string(folder.join("manifest")).ok()?))
}

/// Packages and the versions that were installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest(Vec<(String, String)>);

impl Manifest {
    /// Reads lines of a package and its version.
    fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        Self(pairs.map(|(package, version)| (package.to_owned(), version.trim().to_owned())).collect())
    }

    /// A package's version, if it is installed.
    pub(crate) fn version(&self, package: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == package).map(|(_, version)| version.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_found_by_its_name() {
        let manifest = Manifest::parse("docker.io 28.5.2+dfsg4-5\npodman 5.8.6+ds1-3\n");
        assert_eq!(manifest.version("docker.io"), Some("28.5.2+dfsg4-5"));
        assert_eq!(manifest.version("docker"), None);
    }
}
