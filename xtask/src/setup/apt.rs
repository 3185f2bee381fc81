//! What Debian's package manager knows about the packages that we could ask it for.

use std::collections::BTreeMap;

use wsl_mirror_toolchain::{Missing, Toolchain, Version, oldest};

use super::{
    llvm::{LINKER_LLVMS, has_llvm_dev, llvm_package},
    machine::Machine,
    needs::Tool,
    programs::program,
};

/// Compilers, of which Debian has two sets: `rustc-web`, new enough to build browsers, in its stable
/// releases' security updates, and the release's own.
pub(super) const WEB: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
pub(super) const OWN: [&str; 3] = ["rustc", "cargo", "rust-src"];

/// The versions of a package that apt knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) installed: Option<String>,
    pub(super) candidate: Option<String>,
}

/// The age of apt's lists of packages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Lists {
    /// As set-up found them.
    #[default]
    Found,
    /// Set-up has updated them, or tried to.
    Updated,
}

/// What apt answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Apt {
    /// The packages that it has heard of, by name.
    pub(super) packages: BTreeMap<String, Versions>,
    /// Needed packages that it cannot install beside the installed ones, and why not.
    pub(super) refused: BTreeMap<String, String>,
    pub(super) lists: Lists,
}

impl Apt {
    /// `None` where there is no apt, or where it does not answer.
    pub(super) fn read(
        machine: &Machine,
        toolchain: &Result<Toolchain, Missing>,
        missing: &[Tool],
        lists: Lists,
    ) -> Option<Self> {
        program("apt-get")?;
        let llvm = LINKER_LLVMS.map(llvm_package);
        let output = machine
            .command("apt-cache")
            .arg("policy")
            .args(WEB.iter().chain(&OWN).chain(&["rustup"]))
            .args(missing.iter().map(|tool| tool.package))
            // Where docker-cli is no package.
            .arg("docker.io")
            .args(llvm)
            .output()
            .ok()?;
        if !output.status.success() {
            return None;
        }
        let packages = parse(&String::from_utf8_lossy(&output.stdout));
        let mut apt = Self { packages, refused: BTreeMap::new(), lists };
        let needs = apt.needs(toolchain, missing);
        apt.refused = refusals(&needs, |packages| simulate(machine, packages));
        Some(apt)
    }

    /// The packages that a plan may install.
    fn needs(&self, toolchain: &Result<Toolchain, Missing>, missing: &[Tool]) -> Vec<Need> {
        let mut needs: Vec<Need> = Vec::new();
        match toolchain.as_ref().err().map(|missing| &missing.compiler) {
            Some(None) => {
                let packages = self.compiler().unwrap_or_default();
                needs.push(vec![packages.into_iter().map(str::to_owned).collect()]);
            }
            Some(Some(compiler)) => {
                let llvms = || LINKER_LLVMS.filter(|llvm| *llvm >= compiler.llvm.major);
                if !llvms().any(has_llvm_dev) {
                    let packages = llvms().map(llvm_package).filter(|package| self.available(package));
                    needs.push(packages.map(|package| vec![package]).collect());
                }
            }
            None => {}
        }
        for package in missing.iter().map(|tool| self.package(*tool)) {
            let need = vec![vec![package.to_owned()]];
            if self.available(package) && !needs.contains(&need) {
                needs.push(need);
            }
        }
        needs.retain(|need| need.iter().any(|packages| !packages.is_empty()));
        needs
    }

    /// The package that brings a tool. Where docker-cli is no package, the command comes with docker.io.
    pub(super) fn package(&self, tool: Tool) -> &'static str {
        match tool.package {
            "docker-cli" if !self.available("docker-cli") => "docker.io",
            package => package,
        }
    }

    /// The packages that bring a compiler, or why none of apt's do. Debian's two sets exclude each other and
    /// rustup's package, and a user's compiler is not ours to remove.
    pub(super) fn compiler(&self) -> Result<Vec<&'static str>, String> {
        let new_enough = |name: &str| self.upstream(name).is_some_and(|version| version >= oldest());
        // Those of the three that are there already, and as new as the others will be, need no mention.
        let to_install = |set: [&'static str; 3]| {
            let packages: Vec<_> = set.into_iter().filter(|name| !self.is_current(name)).collect();
            match packages.iter().find_map(|name| Some((name, self.refused.get(*name)?))) {
                Some((name, reason)) => Err(format!("{name}: {reason}")),
                None => Ok(packages),
            }
        };
        if self.installed("rustup") {
            return Err("Debian's rustup is installed, which excludes Debian's rustc; \
                        use `rustup toolchain install nightly --component rust-src`"
                .to_owned());
        }
        let own_installed =
            ["rustc", "cargo"].into_iter().filter(|name| self.installed(name)).collect::<Vec<_>>();
        if own_installed.is_empty() && new_enough("rustc-web") {
            return to_install(WEB);
        }
        if !self.installed("rustc-web") && new_enough("rustc") {
            return to_install(OWN);
        }
        Err(if own_installed.is_empty() {
            format!(
                "apt has no Rust {}; Debian 12 and 13 have it in their security updates, as rustc-web",
                oldest()
            )
        } else if new_enough("rustc-web") {
            let own = own_installed.join(" and ");
            format!(
                "this release's {own}, older than {}, excludes rustc-web; \
                 `apt-get remove {}` if you do not need it, and run setup again",
                oldest(),
                own_installed.join(" ")
            )
        } else {
            format!("the {} of this release is older than {}", own_installed.join(" and "), oldest())
        })
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
fn parse(text: &str) -> BTreeMap<String, Versions> {
    let mut packages = BTreeMap::<String, Versions>::new();
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

/// What every installation is told. A package of the user's stays, and stays in its version.
pub(super) const INSTALL: [&str; 3] = ["--yes", "--no-install-recommends", "--no-remove"];

/// Alternatives, the best first, each the packages that belong together.
type Need = Vec<Vec<String>>;

/// The packages that apt cannot install, together with those of earlier needs, beside the installed ones.
/// `simulate` returns the reason of a refusal.
fn refusals(needs: &[Need], simulate: impl Fn(&[&str]) -> Option<String>) -> BTreeMap<String, String> {
    let mut refused = BTreeMap::new();
    let best: Vec<&str> =
        needs.iter().filter_map(|need| need.first()).flatten().map(String::as_str).collect();
    if best.is_empty() || simulate(&best).is_none() {
        return refused;
    }
    let mut accepted: Vec<&str> = Vec::new();
    for need in needs {
        for packages in need {
            let before = accepted.len();
            accepted.extend(packages.iter().map(String::as_str));
            let Some(reason) = simulate(&accepted) else { break };
            accepted.truncate(before);
            refused.extend(packages.iter().map(|package| (package.clone(), reason.clone())));
        }
    }
    refused
}

/// Why apt would not install these packages; `None` where it would.
fn simulate(machine: &Machine, packages: &[&str]) -> Option<String> {
    let output =
        machine.command("apt-get").args(["install", "--simulate"]).args(INSTALL).args(packages).output();
    match output {
        Ok(output) => {
            let reason = takes_away(&String::from_utf8_lossy(&output.stdout));
            let error = || last_error(&String::from_utf8_lossy(&output.stderr));
            reason.or_else(|| (!output.status.success()).then(error))
        }
        Err(error) => Some(format!("apt-get does not start: {error}")),
    }
}

/// Reads what `apt-get install --simulate` said: what it would take away is listed below a heading.
fn takes_away(said: &str) -> Option<String> {
    for (heading, verb) in [("REMOVED:", "remove"), ("DOWNGRADED:", "downgrade")] {
        let mut lines = said.lines().skip_while(|line| !line.ends_with(heading));
        if lines.next().is_some() {
            let names = lines.take_while(|line| line.starts_with("  ")).flat_map(str::split_whitespace);
            return Some(format!("apt would have to {verb} {}", names.collect::<Vec<_>>().join(" ")));
        }
    }
    None
}

/// The error that a failed `apt-get` ends with.
fn last_error(complained: &str) -> String {
    let error = complained.lines().rev().find_map(|line| line.strip_prefix("E: "));
    format!("apt refuses it: {}", error.unwrap_or("nothing").trim_end_matches('.'))
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
        let apt = Apt { packages, ..Apt::default() };
        assert!(apt.available("rustc-web") && !apt.installed("rustc-web"));
        assert_eq!(apt.upstream("rustc-web"), Some(Version { major: 1, minor: 96 }));
        assert!(apt.installed("llvm-22-dev"));
        assert_eq!(apt.upstream("llvm-22-dev"), Some(Version { major: 22, minor: 1 }));
        assert!(!apt.available("rust-llvm"), "a name that others only mention");
        assert!(!apt.available("docker-cli"), "a name that nobody knows");
    }

    #[test]
    fn a_refused_package_leaves_the_others_and_its_alternative() {
        let need = |alternatives: &[&[&str]]| -> Need {
            alternatives.iter().map(|packages| packages.iter().map(ToString::to_string).collect()).collect()
        };
        let needs = [
            need(&[&["rustc", "cargo"]]),
            need(&[&["llvm-22-dev"], &["llvm-23-dev"]]),
            need(&[&["nftables"]]),
        ];
        let conflict = |bad: &'static [&str]| {
            refusals(&needs, move |packages| {
                bad.iter().find(|bad| packages.contains(bad)).map(|bad| format!("{bad} breaks"))
            })
        };
        assert_eq!(conflict(&[]), BTreeMap::new());
        assert_eq!(conflict(&["cargo"]).into_keys().collect::<Vec<_>>(), ["cargo", "rustc"]);
        assert_eq!(conflict(&["llvm-22-dev"]).into_keys().collect::<Vec<_>>(), ["llvm-22-dev"]);
    }

    #[test]
    fn apt_refuses_what_would_take_something_away() {
        let said = "The following additional packages will be installed:\n  seabios\n\
                    The following packages will be REMOVED:\n  qemu-utils other\n\
                    The following NEW packages will be installed:\n  qemu-system-x86 seabios\n";
        assert_eq!(takes_away(said).as_deref(), Some("apt would have to remove qemu-utils other"));
        let said = "The following packages will be DOWNGRADED:\n  libc6\n0 upgraded\n";
        assert_eq!(takes_away(said).as_deref(), Some("apt would have to downgrade libc6"));
        assert_eq!(takes_away("Inst seabios (1.16.2-1)\n"), None);
        let error = "W: old lists\nE: Unable to correct problems, you have held broken packages.\n";
        let reason = "apt refuses it: Unable to correct problems, you have held broken packages";
        assert_eq!(last_error(error), reason);
    }
}
