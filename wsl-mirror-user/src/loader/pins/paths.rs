//! Where the pins are.

use std::path::{Path, PathBuf};

use wsl_mirror_core::abi::{LAYOUT, PINS};

/// Our directory in bpffs.
pub const DIRECTORY: &str = PINS;
/// A pin that is about to replace another one; left over if we were killed in between. bpffs wants no dots in
/// names (`bpf_lookup`).
pub(super) const NEW: &str = "_new";

/// The maps that are pinned, each under its own name.
pub const MAPS: [&str; 15] = [
    "SETTINGS",
    "PORT_POLICY",
    "OWNERS",
    "SOCKET_OWNER",
    "SOCKET_TARGET",
    "SOCKET_TRANSLATIONS",
    "SOCKET_EVENTS",
    "FRAGMENTS",
    "DIRECT_FLOWS",
    "LOCAL_ADDRESSES",
    "CLIENTS",
    "VERDICTS",
    "PORT_STATS",
    "PORT_PACKETS",
    "AYA_LOGS",
];

/// The directory of this release's layout.
pub fn directory() -> PathBuf {
    Path::new(DIRECTORY).join(layout_name())
}

pub(super) fn layout_name() -> String {
    format!("v{LAYOUT}")
}

/// The path of a pin.
pub fn path(name: &str) -> PathBuf {
    directory().join(name)
}

/// The path under which a pin's successor is made.
pub fn path_of_new(name: &str) -> PathBuf {
    directory().join(format!("{name}{NEW}"))
}

/// The directories that lead to our pins, outermost first.
pub fn directories() -> [PathBuf; 2] {
    [Path::new(DIRECTORY).to_owned(), directory()]
}
