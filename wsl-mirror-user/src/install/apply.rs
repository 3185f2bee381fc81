//! Carries the plan out.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::plan::{OnFailure, Plan};
use super::state::below;
use super::step::Step;
use super::{agent, unit};
use crate::errors::Errors;
use crate::exit::{Exit, Failure};
use crate::host::tool::{self, Unread};

/// How long systemctl may take: the unit's `TimeoutStopSec=`, and systemd's own time for what else it is at.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(30);

/// Ends the headline of several failures.
const FAILED: &str = "could not be done";

/// Does all steps, in the distribution that `root` is; reports every one that fails.
pub fn apply(plan: &Plan, root: &Path) -> Result<()> {
    let mut errors = Errors::default();
    for step in &plan.steps {
        if let Err(error) = carry_out(step, root) {
            errors.push(error);
            if plan.on_failure == OnFailure::Stop {
                break;
            }
        }
    }
    errors.extend(refusals(plan));
    errors.into_result(FAILED)
}

/// What [`apply`] would report if every step were done.
pub fn refuse(plan: &Plan) -> Result<()> {
    let mut errors = Errors::default();
    errors.extend(refusals(plan));
    errors.into_result(FAILED)
}

fn refusals(plan: &Plan) -> impl Iterator<Item = anyhow::Error> {
    plan.refused.iter().map(|why| Failure::new(Exit::NotUnderstood, why))
}

fn carry_out(step: &Step, root: &Path) -> Result<()> {
    match step {
        Step::File { path, after: Some(text), .. } => {
            replace(&below(root, path), text).with_context(|| format!("cannot write {path}"))
        }
        Step::File { path, after: None, .. } => {
            fs::remove_file(below(root, path)).with_context(|| format!("cannot remove {path}"))
        }
        Step::Enable { unit } => link(unit, &below(root, unit::BOOT_LINK))
            .with_context(|| format!("cannot link {} to {}", unit::BOOT_LINK, unit.display())),
        Step::Disable => fs::remove_file(below(root, unit::BOOT_LINK))
            .with_context(|| format!("cannot remove {}", unit::BOOT_LINK)),
        Step::Systemctl(arguments) => match tool::run_for(SYSTEMCTL_LIMIT, "systemctl", arguments) {
            Ok(_) => Ok(()),
            // Not at work, and without a file any more, it is forgotten: there is nothing to stop.
            Err(Unread::Failed(why))
                if arguments.first() == Some(&"stop") && why.ends_with(" not loaded.") =>
            {
                Ok(())
            }
            Err(Unread::NotInstalled) => bail!("cannot tell systemd: there is no systemctl"),
            Err(Unread::Failed(why)) => bail!("cannot tell systemd: {why}; `{step}` once more by hand"),
        },
        Step::End { pid } => agent::end(*pid),
        Step::Restart { pid, program } => agent::restart(*pid, program),
    }
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

    #[test]
    fn a_failed_removal_stops_no_other_and_all_are_reported() {
        let folder = std::env::temp_dir().join(format!("wsl-mirror-taken-{}", std::process::id()));
        let conf = folder.join("etc/wsl.conf");
        let steps = vec![
            // Nobody has made it.
            Step::Disable,
            Step::File { path: "/etc/wsl.conf", before: None, after: None },
        ];
        let plan =
            Plan { steps, refused: vec!["by hand".into()], on_failure: OnFailure::GoOn, ..Plan::default() };
        replace(&conf, "one").unwrap();
        let error = apply(&plan, &folder).unwrap_err().to_string();
        assert!(!conf.exists(), "{error}");
        assert!(
            error.starts_with("2 things") && error.contains(unit::BOOT_LINK) && error.contains("by hand"),
            "{error}"
        );
        // What is put there builds on what was put there before.
        replace(&conf, "one").unwrap();
        apply(&Plan { on_failure: OnFailure::Stop, ..plan }, &folder).unwrap_err();
        assert!(conf.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
