//! Engines of other Debian releases, for the matrix of the lab: folders of them, and what the matrix came to.

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

use crate::table as text_table;

/// Names the folder that gets a file from each test of the matrix.
pub(crate) const RESULTS: &str = "WSL_MIRROR_ENGINES_RESULTS";
/// What every test that needs these engines has in its name, and no other: they are a group of their own.
pub(crate) const TESTS: [&str; 3] = ["matrix::", "orders::", "short_connections::"];
/// The lab's test binary of them. Not for virtual machines: it is the engines that differ here.
pub(crate) const BINARY: &str = "engines";

/// A release of Debian with the engines that are wanted of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    /// Packages, and what their versions start with. A suite moves on; then only these cells are left out.
    wanted: [(&'static str, &'static str); 2],
    needed: Needed,
}

/// When a suite's folder is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    Always,
    /// For all engines; in the default run its Docker is this machine's own, if that is of this release.
    UnlessThisMachineHasIt,
    WithAllEngines,
}

pub(crate) const SUITES: [Suite; 3] = [
    Suite {
        name: "bookworm",
        wanted: [("docker.io", "20.10."), ("podman", "4.3.")],
        needed: Needed::UnlessThisMachineHasIt,
    },
    Suite {
        name: "trixie",
        wanted: [("docker.io", "26.1."), ("podman", "5.4.")],
        needed: Needed::WithAllEngines,
    },
    Suite { name: "sid", wanted: [("docker.io", "28.5."), ("podman", "5.8.")], needed: Needed::Always },
];

/// Makes the folders that are not there, and prints what is in them; returns the folder of all. A suite that cannot be
/// had is reported, and its tests will say so too.
pub(crate) fn ensure(all: bool) -> Result<PathBuf> {
    let folder = cache::folder()?;
    let mut rows = Vec::new();
    for suite in &SUITES {
        let machines = machines_docker().filter(|version| suite.has("docker.io", version));
        let wanted = match suite.needed {
            Needed::Always => true,
            Needed::UnlessThisMachineHasIt => all || machines.is_none(),
            Needed::WithAllEngines => all,
        };
        let found = cache::find(&folder, suite).map(Ok).or_else(|| {
            wanted.then(|| {
                recipe::make(&folder, suite)?;
                cache::find(&folder, suite).context("it was made, and is not there")
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
    print!("{}", text_table::render(["engines of", "docker.io", "podman"], &rows, 3));
    Ok(folder)
}

impl Suite {
    /// Whether a version of the package is the one that is wanted.
    fn has(&self, package: &str, version: &str) -> bool {
        self.wanted.iter().any(|(name, start)| *name == package && version.starts_with(start))
    }

    fn row(&self, manifest: &Manifest) -> [String; 3] {
        let [docker, podman] = self.wanted.map(|(package, start)| match manifest.version(package) {
            Some(version) if self.has(package, version) => version.to_owned(),
            Some(version) => format!("{version}, not {start}*: not tested"),
            None => "not there".to_owned(),
        });
        [self.name.to_owned(), docker, podman]
    }
}

/// An empty folder for what the tests find out.
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
    let said = String::from_utf8_lossy(&dockerd.stdout);
    Some(said.split_whitespace().nth(2)?.trim_end_matches(',').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_that_has_moved_on_is_not_what_is_wanted() {
        let [.., sid] = &SUITES;
        assert!(sid.has("docker.io", "28.5.2+dfsg4-5"));
        assert!(!sid.has("docker.io", "29.1.0+dfsg1-1"));
        assert!(!sid.has("docker.io", "5.8.6+ds1-3"), "that is Podman's");
    }
}
