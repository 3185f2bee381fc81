//! Carries the plan out.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::plan::{Plan, Step};
use super::state::below;
use super::unit;
use crate::host::tool::{self, Unread};

/// Does all steps, in the distribution that `root` is.
pub fn apply(plan: &Plan, root: &Path) -> Result<()> {
    plan.steps.iter().try_for_each(|step| match step {
        Step::File { path, after: Some(text), .. } => {
            replace(&below(root, path), text).with_context(|| format!("cannot write {path}"))
        }
        Step::File { path, after: None, .. } => {
            fs::remove_file(below(root, path)).with_context(|| format!("cannot remove {path}"))
        }
        Step::Enable { unit } => link(unit, &below(root, unit::WANTED))
            .with_context(|| format!("cannot link {} to {}", unit::WANTED, unit.display())),
        Step::Disable => fs::remove_file(below(root, unit::WANTED))
            .with_context(|| format!("cannot remove {}", unit::WANTED)),
        Step::Systemctl(arguments) => match tool::run("systemctl", arguments) {
            Ok(_) => Ok(()),
            Err(Unread::NotInstalled) => bail!("cannot tell systemd: there is no systemctl"),
            Err(Unread::Failed(why)) => bail!("cannot tell systemd: {why}; `{step}` once more by hand"),
        },
    })
}

/// Gives a file another text, wholly or not at all; it keeps its owner and its mode.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let before = match fs::metadata(path) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".wsl-mirror-new");
    let new = Path::new(&name);
    let write = || -> io::Result<()> {
        let mut file = File::create(new)?;
        file.set_permissions(Permissions::from_mode(
            before.as_ref().map_or(0o644, |old| old.mode() & 0o7777),
        ))?;
        if let Some(old) = &before {
            chown(new, Some(old.uid()), Some(old.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        // WSL may be shut down at any moment.
        file.sync_all()?;
        fs::rename(new, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(new);
    })
}

fn link(target: &Path, at: &Path) -> io::Result<()> {
    if let Some(folder) = at.parent() {
        fs::create_dir_all(folder)?;
    }
    symlink(target, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_mode_and_nothing_lies_beside_it() {
        let folder = std::env::temp_dir().join(format!("wsl-mirror-apply-{}", std::process::id()));
        let path = folder.join("etc/wsl.conf");
        replace(&path, "one").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
