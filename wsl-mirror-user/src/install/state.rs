//! What the distribution has.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result};

use super::unit;
use crate::exit::{Exit, Failure};
use crate::host::wsl::Mode;

/// Where WSL reads a distribution's settings.
pub const WSL_CONF: &str = "/etc/wsl.conf";
/// There as long as systemd runs (`sd_booted(3)`).
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// As far as the plan depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether this is WSL, and its networking mode.
    pub mode: Mode,
    /// Whether systemd is init now.
    pub systemd_runs: bool,
    /// Whether that systemd can be told what to do: it is not that of a folder.
    pub here: bool,
    /// The text of `/etc/wsl.conf`, if it is there.
    pub wsl_conf: Option<String>,
    /// The program that is to run.
    pub binary: PathBuf,
    /// Why it must not be run at boot, if so.
    pub objection: Option<String>,
    /// The administrator's unit of our name, if there is one.
    pub unit: Option<String>,
    /// Where a package has put ours, and its text.
    pub packaged: Option<(&'static str, String)>,
    /// What starts it at boot: the link's target, if there is one.
    pub wanted: Option<PathBuf>,
}

impl State {
    /// Reads it below `root`: `/`, or a folder. `binary` is asked for; else it is the program that runs.
    pub fn read(root: &Path, binary: Option<&Path>) -> Result<Self> {
        let here = root == Path::new("/");
        let binary = match binary {
            Some(path) => path.to_owned(),
            None => env::current_exe().context("cannot find out which program this is")?,
        };
        let mut packaged = None;
        for path in unit::PACKAGED {
            packaged = packaged.or(read(root, path)?.map(|text| (path, text)));
        }
        Ok(Self {
            mode: Mode::read(root),
            systemd_runs: below(root, SYSTEMD_RUNS).is_dir(),
            here,
            wsl_conf: read(root, WSL_CONF)?,
            objection: if here { objection(&binary) } else { None },
            binary,
            unit: read(root, unit::PATH)?,
            packaged,
            wanted: match fs::read_link(below(root, unit::WANTED)) {
                Ok(target) => Some(target),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => {
                    return Err(Failure::new(
                        Exit::NotUnderstood,
                        format!("{} is no link that can be read: {error}; remove it", unit::WANTED),
                    ));
                }
            },
        })
    }
}

/// A path of the distribution, where it is seen from here.
pub fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A file that we may change: text, and a file of its own.
fn read(root: &Path, path: &str) -> Result<Option<String>> {
    let real = below(root, path);
    let refuse = |what: String| Err(Failure::new(Exit::NotUnderstood, format!("{path} {what}")));
    match fs::symlink_metadata(&real) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {path}")),
        Ok(found) if found.is_symlink() => {
            let to = fs::read_link(&real).unwrap_or_default();
            return refuse(format!(
                "is a link to {}: something else looks after it. Make it a file, or let that do what `install` does",
                to.display()
            ));
        }
        Ok(found) if !found.is_file() => return refuse("is no file".to_owned()),
        Ok(_) => {}
    }
    match fs::read_to_string(&real) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::InvalidData => refuse("is no text in UTF-8".to_owned()),
        Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
    }
}

/// Why root must not run this program at every boot: somebody else could put another one in its place.
fn objection(binary: &Path) -> Option<String> {
    binary.ancestors().find_map(|part| {
        let found: io::Result<_> = fs::metadata(part);
        match found {
            Err(error) => Some(format!("{} cannot be looked at: {error}", part.display())),
            Ok(found) => objection_to(part, found.uid(), found.mode()),
        }
    })
}

fn objection_to(part: &Path, owner: u32, mode: u32) -> Option<String> {
    if owner != 0 {
        return Some(format!("{} belongs to user {owner}", part.display()));
    }
    (mode & 0o022 != 0)
        .then(|| format!("{} is writable for others than root (mode {:04o})", part.display(), mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_others_could_replace_is_objected_to() {
        let objects = |owner, mode| objection_to(Path::new("/x"), owner, mode).is_some();
        assert!(!objects(0, 0o100_755));
        assert!(objects(1000, 0o100_755));
        assert!(objects(0, 0o100_775), "the group's");
        assert!(objects(0, 0o041_777), "/tmp, sticky or not");
        assert_eq!(objection(Path::new("/")), None);
        assert!(objection(Path::new("/no/such/program")).is_some());
    }
}
