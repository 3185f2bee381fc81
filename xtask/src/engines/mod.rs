//! Engines of other Debian releases, for the matrix of the lab: their folders, and the results of the matrix.

mod cache;
mod document;
mod recipe;
mod results;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use cache::Manifest;
pub(crate) use cache::OVERRIDE;
pub(crate) use document::write;
pub(crate) use results::{Row, read, table};

use crate::{table as text_table, test::Extent};

/// Names the folder that gets a file from each test of the matrix.
pub(crate) const RESULTS: &str = "WSL_MIRROR_ENGINES_RESULTS";
/// Every test that needs these engines has one of these in its name, and no other test has. They are a suite.
pub(crate) const TESTS: [&str; 3] = ["matrix::", "orders::", "short_connections::"];
/// The lab's test binary that has them. Virtual machines leave it out: engines differ here, not kernels.
pub(crate) const BINARY: &str = "engines";

/// A release of Debian, and the engines that the matrix takes from it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    /// Packages, and the beginnings of their versions. When a suite moves on, only these cells are left out.
    packages: [(&'static str, &'static str); 2],
    needed: Needed,
}

/// When a suite's folder is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    Always,
    /// With all engines. Otherwise this machine's own Docker serves, if it is of this release.
    UnlessThisMachineHasIt,
    WithAllEngines,
}

pub(crate) const SUITES: [Suite; 3] = [
    Suite {
        name: "bookworm",
        packages: [("docker.io", "20.10."), ("podman", "4.3.")],
        needed: Needed::UnlessThisMachineHasIt,
    },
    Suite {
        name: "trixie",
        packages: [("docker.io", "26.1."), ("podman", "5.4.")],
        needed: Needed::WithAllEngines,
    },
    Suite { name: "sid", packages: [("docker.io", "28.5."), ("podman", "5.8.")], needed: Needed::Always },
];

/// Makes missing folders, and prints what is in them; returns the folder of all suites. A suite that apt cannot reach is
/// reported here, and by its tests.
pub(crate) fn ensure(extent: Extent) -> Result<PathBuf> {
    let folder = cache::folder()?;
    let mut rows = Vec::new();
    for suite in &SUITES {
        let machines = machines_docker().filter(|version| suite.has("docker.io", version));
        let needed = match suite.needed {
            Needed::Always => true,
            Needed::UnlessThisMachineHasIt => extent == Extent::Full || machines.is_none(),
            Needed::WithAllEngines => extent == Extent::Full,
        };
        let found = cache::find(&folder, suite).map(Ok).or_else(|| {
            needed.then(|| {
                recipe::make(&folder, suite)?;
                cache::find(&folder, suite).context("the folder was made, and is not there")
            })
        });
        rows.push(match found {
            Some(Ok(manifest)) => suite.row(&manifest),
            Some(Err(error)) => {
                eprintln!("xtask: engines of {}: {error:#}", suite.name);
                [suite.name.to_owned(), "cannot be had".to_owned(), "cannot be had".to_owned()]
            }
            None => {
                let docker =
                    machines.map_or_else(|| "-".to_owned(), |found| format!("{found} (this machine's)"));
                [suite.name.to_owned(), docker, "-".to_owned()]
            }
        });
    }
    print!("{}", text_table::plain(["engines of", "docker.io", "podman"], &rows, 3));
    Ok(folder)
}

impl Suite {
    /// Whether the matrix takes this version of the package.
    fn has(&self, package: &str, version: &str) -> bool {
        self.packages.iter().any(|(name, start)| *name == package && version.starts_with(start))
    }

    fn row(&self, manifest: &Manifest) -> [String; 3] {
        let [docker, podman] = self.packages.map(|(package, start)| match manifest.version(package) {
            Some(version) if self.has(package, version) => version.to_owned(),
            Some(version) => format!("{version}, not {start}*: not tested"),
            None => "not there".to_owned(),
        });
        [self.name.to_owned(), docker, podman]
    }
}

/// An empty folder for the results of the tests.
pub(crate) fn empty(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", folder.display()));
        }
        _ => {}
    }
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}

/// The version of this machine's dockerd: `Docker version 20.10.24+dfsg1, build 5d6db84`.
fn machines_docker() -> Option<String> {
    let dockerd = Command::new("/usr/sbin/dockerd").arg("--version").stdin(Stdio::null()).output().ok()?;
    let version = String::from_utf8_lossy(&dockerd.stdout);
    Some(version.split_whitespace().nth(2)?.trim_end_matches(',').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_that_has_moved_on_lacks_the_engine() {
        let [.., sid] = &SUITES;
        assert!(sid.has("docker.io", "28.5.2+dfsg4-5"));
        assert!(!sid.has("docker.io", "29.1.0+dfsg1-1"));
        assert!(!sid.has("docker.io", "5.8.6+ds1-3"), "that is Podman's");
    }
}
