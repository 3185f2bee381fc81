//! What WSL says of itself: whether this is it, and its networking mode.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::tool::{self, Unread};

/// WSL's own program, of which `wslinfo` is another name.
const INIT: &str = "/init";
/// Where WSL answers questions, also when nobody has made that name.
const SOCKET: &str = "/run/WSL/1_interop";

/// How this distribution meets Windows' network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What wsl-mirror is there for.
    Mirrored,
    /// `consomme`, or `virtioproxy` as it was called before: it has a `loopback0` too.
    Proxy(String),
    /// Another one (`nat`, `none`, `bridged`, `wsl1`), where there is no `loopback0`.
    Other(String),
    /// This is WSL, and it does not say.
    Unknown(String),
    /// The kernel is not WSL's.
    NotWsl,
}

impl Mode {
    /// Asks the machine. `root` is `/`, or a folder that a test has made to look like a machine.
    pub fn read(root: &Path) -> Self {
        let release = fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
        if !is_wsl(&release) {
            return Self::NotWsl;
        }
        match ask(root) {
            Ok(said) => Self::from_word(said.trim()),
            Err(Unread::NotInstalled) => {
                Self::Unknown("there is no wslinfo, and nobody answers in its place".to_owned())
            }
            Err(Unread::Failed(why)) => Self::Unknown(why),
        }
    }

    fn from_word(word: &str) -> Self {
        match word {
            "mirrored" => Self::Mirrored,
            "consomme" | "virtioproxy" => Self::Proxy(word.to_owned()),
            "nat" | "none" | "bridged" | "wsl1" => Self::Other(word.to_owned()),
            other => Self::Unknown(format!("wslinfo says {other:?}")),
        }
    }

    /// Whether there may be a `loopback0`, now or later.
    pub fn may_have_loopback0(&self) -> bool {
        !matches!(self, Self::Other(_) | Self::NotWsl)
    }

    /// In a word, for people and programs.
    pub fn word(&self) -> &str {
        match self {
            Self::Mirrored => "mirrored",
            Self::Proxy(word) | Self::Other(word) => word,
            Self::Unknown(_) => "unknown",
            Self::NotWsl => "no WSL",
        }
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

    #[test]
    fn every_mode_that_wslinfo_names_is_known() {
        for (word, mode, loopback0) in [
            ("mirrored", Mode::Mirrored, true),
            ("consomme", Mode::Proxy("consomme".into()), true),
            ("virtioproxy", Mode::Proxy("virtioproxy".into()), true),
            ("nat", Mode::Other("nat".into()), false),
            ("none", Mode::Other("none".into()), false),
            ("bridged", Mode::Other("bridged".into()), false),
            ("wsl1", Mode::Other("wsl1".into()), false),
        ] {
            assert_eq!(Mode::from_word(word), mode);
            assert_eq!((mode.may_have_loopback0(), mode.word()), (loopback0, word));
        }
        let unknown = Mode::from_word("teleported");
        assert!(
            unknown.may_have_loopback0()
                && matches!(&unknown, Mode::Unknown(why) if why.contains("teleported"))
        );
        assert!(!Mode::NotWsl.may_have_loopback0());
    }
}
