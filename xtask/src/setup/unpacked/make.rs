//! Makes the folder of a package: download, unpack, wrap, and only then give it its name.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{
    super::machine::Machine,
    packages::Bundle,
    recipe::{UNPACK, is_current, recipe},
    wrapper::{self, Folders},
};
use crate::progress;

/// Makes the folder of the package; `step` is what the terminal calls that.
///
/// # Errors
/// There is no cache, the mirror does not have a package (any more), or a program is not where it should be.
pub(in super::super) fn make(machine: &Machine, package: &Bundle, step: &str) -> Result<()> {
    let folder = machine.unpacked.as_deref();
    let folder = folder.context("no folder to unpack into: HOME is not set, nor XDG_CACHE_HOME")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    // A second set-up waits here, and finds the folder.
    let lock = folder.join(format!("{}.lock", package.name));
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.with_context(|| format!("locking {} in {}", package.name, folder.display()))?;
    if is_current(package, folder) {
        return Ok(());
    }
    let partial = folder.join(format!(".{}.partial", package.name));
    remove(&partial)?;
    let bin = partial.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("creating {}", bin.display()))?;
    let mut unpack = machine.command("sh");
    unpack.args(["-c", UNPACK, "sh"]).arg(&partial).arg(package.name);
    progress::command("setup", step, &mut unpack, &machine.log())?;
    let finished = folder.join(package.name);
    let folders =
        Folders { files: &partial.join("root"), root: &finished.join("root"), bin: &finished.join("bin") };
    for program in package.programs {
        wrapper::write(&folders, program, &bin)
            .with_context(|| format!("making {} of {} run", program.name, package.name))?;
    }
    fs::write(partial.join("recipe"), recipe(package, folder)).context("writing the recipe")?;
    remove(&finished)?;
    fs::rename(&partial, &finished).with_context(|| format!("renaming {}", partial.display()))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
