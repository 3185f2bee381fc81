//! The systemd unit: the text, and where it goes.

/// Its name.
pub const NAME: &str = "wsl-mirror.service";
/// Where the administrator's units are.
pub const PATH: &str = "/etc/systemd/system/wsl-mirror.service";
/// Where packages put theirs, the first that exists counting. Where /usr is merged, both are the same.
pub const PACKAGED: [&str; 2] =
    ["/usr/lib/systemd/system/wsl-mirror.service", "/lib/systemd/system/wsl-mirror.service"];
/// The link by which it is started at boot: what its `WantedBy=` says.
pub const BOOT_LINK: &str = "/etc/systemd/system/multi-user.target.wants/wsl-mirror.service";

/// As packages have it.
pub const TEXT: &str = include_str!("../../../contrib/wsl-mirror.service");
/// Where packages have the program.
pub const PACKAGED_BINARY: &str = "/usr/sbin/wsl-mirror";

/// The unit that runs the program at this path.
pub fn text(binary: &str) -> String {
    TEXT.replace(PACKAGED_BINARY, binary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_unit_runs_the_program_that_installs_it() {
        let text = text("/opt/wsl-mirror");
        assert!(!text.contains(PACKAGED_BINARY), "{text}");
        let started: Vec<_> = text.lines().filter(|line| line.contains("/opt/wsl-mirror")).collect();
        assert!(started.contains(&"ExecStart=/opt/wsl-mirror run"), "{started:?}");
        assert!(started.iter().any(|line| line.starts_with("ExecCondition=")), "{started:?}");
    }

    #[test]
    fn the_unit_is_wanted_by_the_target_of_the_boot_link() {
        assert!(TEXT.lines().any(|line| line == "WantedBy=multi-user.target"), "{TEXT}");
        assert!(BOOT_LINK.ends_with(&format!("/multi-user.target.wants/{NAME}")));
    }
}
