//! The loader's pins: their paths in the guest, for the map layout of this ABI.

use wsl_mirror_core::abi::LAYOUT;

/// The mount point of the guest's bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The directory that the loader pins into.
pub fn directory() -> String {
    format!("{BPFFS}/wsl-mirror/v{LAYOUT}")
}

/// The pin of this name: a map (`SETTINGS`), the program (`program`) or a link (`link`).
pub fn path(name: &str) -> String {
    format!("{}/{name}", directory())
}
