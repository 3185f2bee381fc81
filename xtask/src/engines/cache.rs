//! The cache of the engines' folders.
//!
//! `<suite>/root` has the files, `<suite>/manifest` the installed versions, and `<suite>/recipe` the recipe. xtask makes
//! a folder anew when its recipe changes. A folder without a recipe is the user's, and xtask takes it as it is.
//! `tests/scenarios/engines/installed.rs` looks in the same places.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use wsl_mirror_toolchain::tools_dir;

use super::{recipe::recipe, suite::Suite};

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

/// The packages in the folder of a suite, if xtask would make the same today.
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
    fn a_version_is_found_by_its_package() {
        let manifest = Manifest::parse("docker.io 28.5.2+dfsg4-5\npodman 5.8.6+ds1-3\n");
        assert_eq!(manifest.version("docker.io"), Some("28.5.2+dfsg4-5"));
        assert_eq!(manifest.version("docker"), None);
    }
}
