//! The cache of kernels.
//!
//! `vmlinuz-<name>` in the folder that `WSL_MIRROR_KERNELS` names, or else below the user's cache. A kernel that xtask
//! built has its configuration beside it, `vmlinuz-<name>.config`: xtask builds it anew when the project's configuration
//! changes. An image without one is the user's, and xtask takes it as it is.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use wsl_mirror_toolchain::tools_dir;

use super::{
    configuration::configuration,
    known::{KNOWN, Known},
};

/// Names the folder.
pub(crate) const OVERRIDE: &str = "WSL_MIRROR_KERNELS";
const PREFIX: &str = "vmlinuz-";

/// The folders of kernels, in the order of the search.
pub(crate) fn folders() -> Vec<PathBuf> {
    let named = env::var_os(OVERRIDE).filter(|value| !value.is_empty());
    // Builds change their directory.
    let named = named.map(|path| std::path::absolute(&path).unwrap_or_else(|_| PathBuf::from(path)));
    named.into_iter().chain(own()).collect()
}

/// Beside the tools that setup builds.
fn own() -> Option<PathBuf> {
    Some(tools_dir()?.parent()?.join("kernels"))
}

/// The folder for a new kernel: the first one that can be written to.
pub(super) fn writable() -> Result<PathBuf> {
    let folders = folders();
    let can_write = |folder: &&PathBuf| {
        let probe = folder.join(format!(".probe-{}", std::process::id()));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&probe, ""))
            .and_then(|()| fs::remove_file(&probe))
            .is_ok()
    };
    folders.iter().find(can_write).cloned().with_context(|| {
        format!("no folder for kernels can be written to, of {folders:?}: name one in {OVERRIDE}")
    })
}

/// The image of a kernel that the project knows, if xtask would build the same today.
pub(super) fn find(known: &Known) -> Option<PathBuf> {
    let configuration = configuration(known);
    folders().iter().find_map(|folder| {
        let image = folder.join(format!("{PREFIX}{}", known.name));
        (image.is_file() && is_current(&image, &configuration)).then_some(image)
    })
}

/// An image by its name alone.
pub(super) fn find_image(name: &str) -> Option<PathBuf> {
    folders().iter().map(|folder| folder.join(format!("{PREFIX}{name}"))).find(|image| image.is_file())
}

/// Images that the project does not know.
pub(super) fn others() -> Vec<(String, PathBuf)> {
    let entries = folders().into_iter().filter_map(|folder| fs::read_dir(folder).ok());
    let mut others: Vec<_> = entries
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned();
            let ours = KNOWN.iter().any(|known| known.name == name);
            (!ours && !name.ends_with(".config")).then(|| (name, entry.path()))
        })
        .collect();
    others.sort();
    others
}

/// The file beside an image that has its configuration.
pub(super) fn configuration_of(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".config");
    name.into()
}

fn is_current(image: &Path, configuration: &str) -> bool {
    fs::read_to_string(configuration_of(image)).map_or(true, |built| built == configuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_current_unless_it_was_built_with_another_configuration() {
        let image = env::temp_dir().join(format!("wsl-mirror-vmlinuz-{}", std::process::id()));
        assert!(is_current(&image, "CONFIG_A=y\n"), "the user's own");
        fs::write(configuration_of(&image), "CONFIG_A=y\n")
            .unwrap_or_else(|error| panic!("writing: {error}"));
        assert!(is_current(&image, "CONFIG_A=y\n"));
        assert!(!is_current(&image, "CONFIG_A=y\nCONFIG_B=y\n"));
        fs::remove_file(configuration_of(&image)).unwrap_or_else(|error| panic!("removing: {error}"));
    }
}
