//! Debian's packages in folders of the cache, for tools that apt cannot install beside the installed ones.
//!
//! `<package>/root` has the files of the package and of all that it depends on, the C library too: nothing of it is
//! mixed with the machine's own libraries. `<package>/bin` has a wrapper for each program, and `<package>/recipe` says
//! how the folder was made: another recipe makes it anew.

mod make;
mod packages;
mod recipe;
mod wrapper;

#[cfg(test)]
mod conflict;

use std::path::{Path, PathBuf};

use super::needs::Tool;
pub(super) use make::make;
use packages::PACKAGES;
pub(super) use packages::{Bundle, of};
use recipe::is_current;

/// The folders of wrappers that are there and made as this set-up makes them.
pub(super) fn bins(folder: &Path) -> Vec<PathBuf> {
    let current = PACKAGES.iter().filter(|package| is_current(package, folder));
    current.map(|package| folder.join(package.name).join("bin")).collect()
}

/// The programs in these folders, of packages that bring a tool.
pub(super) fn programs(folder: &Path, tools: &[Tool]) -> Vec<PathBuf> {
    let packages = PACKAGES.iter().filter(|package| {
        tools.iter().any(|tool| tool.package == package.name) && is_current(package, folder)
    });
    let programs = packages.flat_map(|package| {
        package.programs.iter().map(|program| folder.join(package.name).join("bin").join(program.name))
    });
    programs.collect()
}
