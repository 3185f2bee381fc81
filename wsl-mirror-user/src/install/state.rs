//! What the distribution has.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result};
use rustix::fs::{Mode as Permissions, OFlags, ResolveFlags, openat2};

use super::agent::Running;
use super::binary::objection;
use super::unit;
use crate::exit::{Exit, Failure};
use crate::host::networking::NetworkingMode;
use crate::host::wsl;

/// Where WSL reads a distribution's settings.
pub const WSL_CONF: &str = "/etc/wsl.conf";
/// There as long as systemd runs (`sd_booted(3)`).
const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// What a unit that is masked is a link to.
const MASK: &str = "/dev/null";
/// As far as the plan depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether this is WSL, and its networking mode.
    pub mode: NetworkingMode,
    /// Whether systemd is init now.
    pub systemd_runs: bool,
    /// Whether this distribution runs; else it is a folder.
    pub is_running: bool,
    /// The text of `/etc/wsl.conf`, if it is there.
    pub wsl_conf: Option<String>,
    /// Where that lies really, if it is a link: then something else looks after it.
    pub wsl_conf_link: Option<PathBuf>,
    /// The program that is to run.
    pub binary: PathBuf,
    /// Why it must not be run at boot, if so.
    pub objection: Option<String>,
    /// The administrator's unit of our name, if there is one.
    pub unit: Option<String>,
    /// In its place somebody says that there shall be none: the administrator, or a package that was removed.
    pub masked: bool,
    /// Where a package has put ours, and its text.
    pub packaged: Option<(&'static str, String)>,
    /// What the link that starts it at boot leads to, if there is one.
    pub boot_link: Option<PathBuf>,
    /// The agent of this distribution, if it runs.
    pub agent: Option<Running>,
}

impl State {
    /// Reads it below `root`: `/`, or a folder. `binary` is asked for; else it is the program that runs.
    pub fn read(root: &Path, binary: Option<&Path>) -> Result<Self> {
        let is_running = root == Path::new("/");
        let binary = match binary {
            Some(path) => path.to_owned(),
            None => env::current_exe().context("cannot find out which program this is")?,
        };
        let mut packaged = None;
        for path in unit::PACKAGED {
            packaged = packaged.or(read(root, path)?.map(|text| (path, text)));
        }
        let masked = fs::read_link(below(root, unit::PATH)).is_ok_and(|target| target == Path::new(MASK));
        Ok(Self {
            mode: wsl::networking_mode(root),
            systemd_runs: below(root, SYSTEMD_RUNS).is_dir(),
            is_running,
            wsl_conf: read_through(root, WSL_CONF)?,
            wsl_conf_link: fs::read_link(below(root, WSL_CONF)).ok(),
            objection: if is_running { objection(&binary) } else { None },
            binary,
            unit: if masked { None } else { read(root, unit::PATH)? },
            masked,
            packaged,
            agent: if is_running { Running::find() } else { None },
            boot_link: match fs::read_link(below(root, unit::BOOT_LINK)) {
                Ok(target) => Some(target),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => {
                    return Err(Failure::new(
                        Exit::NotUnderstood,
                        format!("{} is no link that can be read: {error}; remove it", unit::BOOT_LINK),
                    ));
                }
            },
        })
    }
}

impl State {
    /// Whether a running systemd can be told what is to be at once.
    pub fn can_tell_systemd(&self) -> bool {
        self.is_running && self.systemd_runs
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

/// A file that we may have to read only: through links, which a folder's own root ends; what is no UTF-8 in it is
/// [`char::REPLACEMENT_CHARACTER`].
fn read_through(root: &Path, path: &str) -> Result<Option<String>> {
    let inside = File::open(root).with_context(|| format!("cannot look at {}", root.display()))?;
    let relative = path.trim_start_matches('/');
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = openat2(&inside, relative, flags, Permissions::empty(), ResolveFlags::IN_ROOT);
    let mut file = match opened {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
    };
    if !file.metadata().with_context(|| format!("cannot look at {path}"))?.is_file() {
        return Err(Failure::new(Exit::NotUnderstood, format!("{path} is no file")));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(|| format!("cannot read {path}"))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
