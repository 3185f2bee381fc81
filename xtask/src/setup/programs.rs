//! Finds programs: the machine's own, and those in folders of the cache.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    elf::is_static,
    machine::Machine,
    needs::{BUSYBOX, LAB, Tool},
    unpacked,
};

/// Where the C compiler looks for headers; on Debian those of one architecture have a folder of their own.
const HEADERS: [&str; 4] =
    ["/usr/include", "/usr/local/include", "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu"];

pub(super) fn has(machine: &Machine, tool: Tool) -> bool {
    if let Some(header) = tool.program.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')) {
        return HEADERS.iter().any(|folder| Path::new(folder).join(header).exists());
    }
    candidates(machine, tool.program).any(|path| tool != BUSYBOX || is_static(&path))
}

/// The programs of this name: on PATH, in the system's folders, which are not on every user's PATH, and unpacked.
fn candidates(machine: &Machine, name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let folders: Vec<_> = env::split_paths(&path).chain(system).chain(unpacked_folders(machine)).collect();
    folders.into_iter().map(move |folder| folder.join(name)).filter(|path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

fn unpacked_folders(machine: &Machine) -> Vec<PathBuf> {
    machine.unpacked.as_deref().map(unpacked::bins).unwrap_or_default()
}

/// Looks for a program.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    candidates(&Machine::this(), name).next()
}

/// The static busybox.
pub(crate) fn busybox() -> Option<PathBuf> {
    candidates(&Machine::this(), BUSYBOX.program).find(|path| is_static(path))
}

/// Names unpacked programs to the lab, whose guests have them in /usr/bin.
const UNPACKED: &str = "WSL_MIRROR_UNPACKED";

/// What has a program and its children find unpacked programs: `path` with their folders behind it, as the machine's own
/// come first, and the list for the lab. Names and values of variables.
pub(crate) fn environment(path: &OsStr) -> Vec<(&'static str, OsString)> {
    let machine = Machine::this();
    let folders = unpacked_folders(&machine);
    let programs = machine.unpacked.iter().flat_map(|folder| unpacked::programs(folder, &LAB));
    let in_use = programs.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let chosen = if name == BUSYBOX.program { busybox() } else { program(&name) };
        chosen.as_ref() == Some(path)
    });
    let join = |paths: Vec<PathBuf>| env::join_paths(paths).ok();
    // A folder with a colon in its name cannot be on PATH; then PATH stays as it is.
    let extended = join(env::split_paths(path).chain(folders).collect());
    let in_use = join(in_use.collect()).filter(|list| !list.is_empty());
    let extended = ("PATH", extended.unwrap_or_else(|| path.to_owned()));
    [extended].into_iter().chain(in_use.map(|list| (UNPACKED, list))).collect()
}

/// Has a command and its children find unpacked programs.
pub(crate) fn equip(command: &mut Command) {
    command.envs(environment(&env::var_os("PATH").unwrap_or_default()));
}
