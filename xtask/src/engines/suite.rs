//! The releases of Debian that engines come from.

/// A release of Debian, and the engines that the matrix takes from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Suite {
    pub(super) name: &'static str,
    /// Packages, and the beginnings of their versions. When a suite moves on, only these cells are left out.
    pub(super) packages: [(&'static str, &'static str); 2],
    pub(super) needed: Needed,
}

/// When a suite's folder is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needed {
    Always,
    /// With all engines. Otherwise this machine's own Docker serves, if it is of this release.
    UnlessThisMachineHasIt,
    WithAllEngines,
}

pub(super) const SUITES: [Suite; 3] = [
    Suite {
        name: "bookworm",
        packages: [("docker.io", "20.10."), ("podman", "4.3.")],
        needed: Needed::UnlessThisMachineHasIt,
    },
    Suite {
        name: "trixie",
        packages: [("docker.io", "26.1."), ("podman", "5.4.")],
        needed: Needed::WithAllEngines,
    },
    Suite { name: "sid", packages: [("docker.io", "28.5."), ("podman", "5.8.")], needed: Needed::Always },
];

impl Suite {
    /// Whether the matrix takes this version of the package.
    pub(super) fn has(&self, package: &str, version: &str) -> bool {
        self.packages.iter().any(|(name, start)| *name == package && version.starts_with(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_that_has_moved_on_lacks_the_engine() {
        let [.., sid] = &SUITES;
        assert!(sid.has("docker.io", "28.5.2+dfsg4-5"));
        assert!(!sid.has("docker.io", "29.1.0+dfsg1-1"));
        assert!(!sid.has("docker.io", "5.8.6+ds1-3"), "that is Podman's");
    }
}
