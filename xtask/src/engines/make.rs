//! Makes the folder of a suite: Debian's packages, unpacked and not installed. The lab's engines need no script of
//! theirs.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    cache,
    recipe::{FINISH, PACKAGES, recipe},
    suite::Suite,
};
use crate::{
    debian::{self, KEYRING},
    progress,
    setup::{self, Needs, Outcome},
};

const HINT: &str = "engines come from Debian's packages, so on a Debian machine; elsewhere, copy a cache of engines \
                    and name it in WSL_MIRROR_ENGINES";

/// Makes the folder of a suite in `folder`.
///
/// # Errors
/// Something is missing and cannot be installed, the mirror does not have the suite (any more) or cannot be reached;
/// the log is named.
pub(super) fn make(folder: &Path, suite: &Suite) -> Result<()> {
    if matches!(setup::ensure(Needs::Engines)?, Outcome::Missing) {
        bail!("the engines' folders need what is named above");
    }
    let mirror = debian::mirror(HINT)?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    // Held until the end: another run waits, and finds the folder.
    let lock = folder.join(format!("{}.lock", suite.name));
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.with_context(|| format!("locking {} in {}", suite.name, folder.display()))?;
    if cache::find(folder, suite).is_some() {
        return Ok(());
    }
    // Under its own name only when it is complete: a user may interrupt this at any moment.
    let partial = folder.join(format!(".{}.partial", suite.name));
    remove(&partial)?;
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let root = partial.join("root");
    let mut mmdebstrap = Command::new("mmdebstrap");
    setup::equip(&mut mmdebstrap);
    mmdebstrap.args(["--mode=root", "--variant=extract", "--format=directory", "--skip=cleanup/apt"]);
    mmdebstrap.arg(format!("--include={}", PACKAGES.join(",")));
    // sid's last signature may be old. apt still checks that it is Debian's.
    for option in ["Acquire::Check-Valid-Until \"false\"", "Acquire::Languages \"none\""] {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    for option in debian::transport()? {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    mmdebstrap.arg(suite.name).arg(&root);
    mmdebstrap.arg(format!("deb [signed-by={KEYRING}] {mirror} {} main", suite.name));
    mmdebstrap.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").current_dir(folder);
    let log = folder.join(format!("{}.log", suite.name));
    let name = format!("unpack Docker and Podman of {} (some 40 s on two cores)", suite.name);
    progress::command("engines", &name, &mut mmdebstrap, &log)?;
    let mut finish = Command::new("sh");
    // mmdebstrap runs no hooks in this variant.
    finish.args(["-c", FINISH, "sh"]).arg(&root).arg(partial.join("manifest")).env("LC_ALL", "C.UTF-8");
    progress::command("engines", &format!("finish the folder of {}", suite.name), &mut finish, &log)?;
    fs::write(partial.join("recipe"), recipe(suite)).context("writing the recipe")?;
    let finished = folder.join(suite.name);
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
