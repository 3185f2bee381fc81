//! What Debian's package manager knows about the packages that we could ask it for.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use wsl_mirror_toolchain::Version;

use super::{
    plan::LINKER_LLVMS,
    state::{ENGINES, FUZZ, KERNELS, LAB, VM, program},
};

/// Compilers, of which Debian has two sets: `rustc-web`, new enough to build browsers, in its stable
/// releases' security updates, and the release's own.
pub(super) const WEB: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
pub(super) const OWN: [&str; 3] = ["rustc", "cargo", "rust-src"];

/// One package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) installed: Option<String>,
    pub(super) candidate: Option<String>,
}

/// What apt answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Apt {
    /// The packages that it has heard of, by name.
    pub(super) packages: BTreeMap<String, Package>,
    /// Whether we brought its lists up to date before.
    pub(super) updated: bool,
}

impl Apt {
    /// `None` where there is no apt, or where it does not answer.
    pub(super) fn read(updated: bool) -> Option<Self> {
        program("apt-get")?;
        let llvm = LINKER_LLVMS.map(llvm_package);
        let output = Command::new("apt-cache")
            .arg("policy")
            .args(WEB.iter().chain(&OWN).chain(&["rustup", "busybox"]))
            .args(LAB.iter().chain(&VM).chain(&KERNELS).chain(&ENGINES).chain(&FUZZ).map(|tool| tool.package))
            .args(llvm)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let packages = parse(&String::from_utf8_lossy(&output.stdout));
        output.status.success().then_some(Self { packages, updated })
    }

    pub(super) fn installed(&self, name: &str) -> bool {
        self.packages.get(name).is_some_and(|package| package.installed.is_some())
    }

    /// Whether it is installed, and in the version that would be installed now.
    pub(super) fn is_current(&self, name: &str) -> bool {
        self.packages
            .get(name)
            .is_some_and(|package| package.installed.is_some() && package.installed == package.candidate)
    }

    /// Whether it can be installed, or brought up to date.
    pub(super) fn available(&self, name: &str) -> bool {
        self.candidate(name).is_some()
    }

    fn candidate(&self, name: &str) -> Option<&str> {
        self.packages.get(name)?.candidate.as_deref()
    }

    /// The upstream version that would be installed.
    pub(super) fn upstream(&self, name: &str) -> Option<Version> {
        let candidate = self.candidate(name)?;
        // An epoch stands in front of it.
        Version::parse(candidate.split_once(':').map_or(candidate, |(_, version)| version))
    }
}

/// Reads `apt-cache policy`: a name at the start of a line, what is installed and what would be below it.
fn parse(text: &str) -> BTreeMap<String, Package> {
    let mut packages = BTreeMap::<String, Package>::new();
    let mut name = None;
    for line in text.lines() {
        if let Some(new) = line.strip_suffix(':').filter(|new| !new.starts_with(' ')) {
            packages.entry(new.to_owned()).or_default();
            name = Some(new);
        } else if let Some(package) = name.and_then(|name| packages.get_mut(name)) {
            let version = |text: &str| Some(text.trim().to_owned()).filter(|version| version != "(none)");
            if let Some(installed) = line.strip_prefix("  Installed:") {
                package.installed = version(installed);
            } else if let Some(candidate) = line.strip_prefix("  Candidate:") {
                package.candidate = version(candidate);
            }
        }
    }
    packages
}

/// The package that has the headers and libraries of an LLVM.
pub(super) fn llvm_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_prints_is_understood() {
        let packages = parse(
            "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n     \
             1.96.0+dfsg1-1~deb12u2 500\n        500 http://mirror.example/debian bookworm/main amd64 Packages\n\
             llvm-22-dev:\n  Installed: 1:22.1.8-1~deb12u1\n  Candidate: 1:22.1.8-1~deb12u1\n\
             rust-llvm:\n  Installed: (none)\n  Candidate: (none)\n",
        );
        let apt = Apt { packages, updated: false };
        assert!(apt.available("rustc-web") && !apt.installed("rustc-web"));
        assert_eq!(apt.upstream("rustc-web"), Some(Version { major: 1, minor: 96 }));
        assert!(apt.installed("llvm-22-dev"));
        assert_eq!(apt.upstream("llvm-22-dev"), Some(Version { major: 22, minor: 1 }));
        assert!(!apt.available("rust-llvm"), "a name that others only mention");
        assert!(!apt.available("docker-cli"), "a name that nobody knows");
    }
}
