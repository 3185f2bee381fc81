//! The machine that set-up works on: its apt, and its folder of unpacked packages.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use wsl_mirror_toolchain::tools_dir;

/// A value, so that a test can have a machine in a folder.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// apt's first file of settings, where it is not this machine's own.
    pub(super) apt_config: Option<PathBuf>,
    /// The folder of unpacked packages; `None` where the user has no cache.
    pub(super) unpacked: Option<PathBuf>,
}

impl Machine {
    /// This machine.
    pub(super) fn this() -> Self {
        let cache = tools_dir().as_deref().and_then(Path::parent).map(Path::to_path_buf);
        Self { apt_config: None, unpacked: cache.map(|cache| cache.join("unpacked")) }
    }

    /// A program of apt's, or a script that runs one, with messages in English.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
        if let Some(config) = &self.apt_config {
            command.env("APT_CONFIG", config);
        }
        command
    }

    /// The log of set-up's steps: in the cache, or wherever there is room.
    pub(super) fn log(&self) -> PathBuf {
        let cache = self.unpacked.as_deref().and_then(Path::parent);
        cache.map_or_else(env::temp_dir, Path::to_path_buf).join("setup.log")
    }
}
