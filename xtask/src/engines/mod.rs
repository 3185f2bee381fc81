//! Engines of other Debian releases, for the matrix of the lab: their folders, and the results of the matrix.

mod cache;
mod document;
mod make;
mod recipe;
mod results;
mod suite;

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
use suite::{Needed, SUITES, Suite};

use crate::{table as text_table, test::Extent};

/// Names the folder that gets a file from each test of the matrix.
pub(crate) const RESULTS: &str = "WSL_MIRROR_ENGINES_RESULTS";
/// Every test that needs these engines has one of these in its name, and no other test has. They are a suite.
pub(crate) const TESTS: [&str; 3] = ["matrix::", "orders::", "short_connections::"];
/// The lab's test binary that has them. Virtual machines leave it out: engines differ here, not kernels.
pub(crate) const BINARY: &str = "engines";

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
                make::make(&folder, suite)?;
                cache::find(&folder, suite).context("the folder was made, and is not there")
            })
        });
        rows.push(match found {
            Some(Ok(manifest)) => row(suite, &manifest),
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

fn row(suite: &Suite, manifest: &Manifest) -> [String; 3] {
    let [docker, podman] = suite.packages.map(|(package, start)| match manifest.version(package) {
        Some(version) if suite.has(package, version) => version.to_owned(),
        Some(version) => format!("{version}, not {start}*: not tested"),
        None => "not there".to_owned(),
    });
    [suite.name.to_owned(), docker, podman]
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
