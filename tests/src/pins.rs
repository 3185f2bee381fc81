//! The loader's pins: their paths in the guest, for the map layout of this ABI.

use wsl_mirror_core::abi::{self, LAYOUT};

/// The mount point of the guest's bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The directory of every layout's pins.
pub const PARENT: &str = abi::PINS;

/// The directory that the loader pins into.
pub fn directory() -> String {
    directory_of(LAYOUT)
}

/// The directory that a loader of this layout pins into.
pub fn directory_of(layout: u32) -> String {
    format!("{PARENT}/v{layout}")
}

/// The pin of this name: a map (`SETTINGS`), the program (`program`) or a link (`link`).
pub fn path(name: &str) -> String {
    format!("{}/{name}", directory())
}
