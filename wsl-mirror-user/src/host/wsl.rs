//! What WSL says of itself: whether this is it, and its networking mode.

use std::fs;
use std::path::Path;

use super::networking::NetworkingMode;
use super::tool::{self, Unread};

/// WSL's own program, of which `wslinfo` is another name.
const INIT: &str = "/init";
/// Where WSL answers questions, also when nobody has made that name.
const SOCKET: &str = "/run/WSL/1_interop";

/// The networking mode that WSL says. `root` is `/`, or a folder that a test has made to look like a machine.
pub fn networking_mode(root: &Path) -> NetworkingMode {
    let release = fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    if !is_wsl(&release) {
        return NetworkingMode::NotWsl;
    }
    match ask(root) {
        Ok(name) => NetworkingMode::from_name(name.trim()),
        Err(Unread::NotInstalled) => {
            NetworkingMode::Unknown("there is no wslinfo, and nobody answers in its place".to_owned())
        }
        Err(Unread::Failed(why)) => NetworkingMode::Unknown(why),
    }
}

/// `5.15.167.4-microsoft-standard-WSL2`; a kernel of one's own may have lost the second half, or the first.
fn is_wsl(release: &str) -> bool {
    let release = release.to_lowercase();
    release.contains("microsoft") || release.contains("wsl")
}

fn ask(root: &Path) -> Result<String, Unread> {
    const QUESTION: [&str; 1] = ["--networking-mode"];
    if let Some(wslinfo) = tool::find_in(root, "wslinfo") {
        return tool::run_path(&wslinfo, "wslinfo", &QUESTION);
    }
    // What `wslinfo` links to does the same by that name: it asks the socket.
    let (init, socket) = (root.join(INIT.trim_start_matches('/')), root.join(SOCKET.trim_start_matches('/')));
    if init.is_file() && socket.exists() {
        return tool::run_path(&init, "wslinfo", &QUESTION);
    }
    Err(Unread::NotInstalled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wsls_kernels_are_known_by_their_release() {
        assert!(is_wsl("5.15.167.4-microsoft-standard-WSL2\n"));
        assert!(is_wsl("6.6.36.3-microsoft-standard-WSL2+"));
        assert!(is_wsl("6.18.0-my-own-WSL2"));
        assert!(!is_wsl("6.1.0-37-amd64\n"));
        assert!(!is_wsl(""));
    }
}
