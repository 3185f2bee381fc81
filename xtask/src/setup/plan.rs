//! From what is missing to what is done about it. Nothing here looks at the machine.

use std::fmt;

use wsl_mirror_toolchain::{Compiler, LINKER_RELEASE, Missing};

use super::{
    apt::Lists,
    llvm::{LINKER_LLVMS, llvm_package},
    needs::BUSYBOX,
    state::State,
    unpacked::{self, Bundle},
};

/// One thing that setup does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// `apt-get update`.
    UpdateLists,
    /// `apt-get install` beside the installed packages: it removes and downgrades none.
    Install { packages: Vec<String> },
    /// A package that apt cannot install, and why not: unpacked into the cache.
    Unpack { package: &'static Bundle, reason: String },
    /// A nightly with rust-src from rustup.
    Rustup,
    /// bpf-linker, linked with the distribution's LLVM.
    BuildLinker { compiler: Compiler, llvm: u32 },
    /// bpf-linker as its authors built it.
    FetchLinker,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpdateLists => write!(f, "update the package lists"),
            Self::Install { packages } => write!(f, "install {}", packages.join(" ")),
            Self::Unpack { package, reason } => {
                write!(f, "unpack {} into the cache, to run from there, as {reason}", package.name)
            }
            Self::Rustup => write!(f, "install Rust nightly with rust-src by rustup"),
            Self::BuildLinker { llvm, .. } => write!(f, "build bpf-linker {LINKER_RELEASE} with LLVM {llvm}"),
            Self::FetchLinker => write!(f, "install bpf-linker {LINKER_RELEASE} by cargo binstall"),
        }
    }
}

/// What setup does, and what it leaves to a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) by_hand: Vec<String>,
}

/// What one round does about what is missing.
pub(super) fn plan(state: &State) -> Plan {
    let mut round = Round { state, plan: Plan::default(), packages: Vec::new(), unknown: false };
    if let Err(missing) = &state.toolchain {
        if state.overrides.is_empty() {
            match &missing.compiler {
                None => round.compiler(missing),
                Some(compiler) => round.linker(missing, compiler),
            }
        } else {
            round.plan.by_hand.push(format!(
                "correct or unset {}, by which the toolchain was chosen",
                state.overrides.join(" and ")
            ));
        }
    }
    round.lab();
    round.finish()
}

/// A plan in the making.
struct Round<'a> {
    state: &'a State,
    plan: Plan,
    packages: Vec<String>,
    /// apt does not know a package that it may know after an update.
    unknown: bool,
}

impl Round<'_> {
    fn compiler(&mut self, missing: &Missing) {
        let from_apt = match &self.state.apt {
            Some(apt) => apt.compiler(),
            None => Err("this is no Debian".to_owned()),
        };
        match from_apt {
            // Whoever has rustup and is not root is helped by rustup alone.
            Ok(packages) if self.state.root || !self.state.rustup => {
                self.packages.extend(packages.into_iter().map(str::to_owned));
            }
            Ok(_) => self.plan.steps.push(Step::Rustup),
            Err(_) if self.may_update() => self.unknown = true,
            Err(_) if self.state.rustup => self.plan.steps.push(Step::Rustup),
            Err(reason) => {
                self.plan.by_hand.push(format!("a Rust toolchain ({reason}):\n{}", missing.by_hand()));
            }
        }
    }

    /// The oldest LLVM that is new enough: the one that the compiler was built with, if there is a choice.
    fn linker(&mut self, missing: &Missing, compiler: &Compiler) {
        let enough = || LINKER_LLVMS.filter(|llvm| *llvm >= compiler.llvm.major);
        let build = |llvm| Step::BuildLinker { compiler: compiler.clone(), llvm };
        if let Some(llvm) = enough().find(|llvm| self.state.llvm_dev.contains(llvm)) {
            self.plan.steps.push(build(llvm));
            return;
        }
        let apt = self.state.apt.as_ref();
        let packages = || enough().filter(|llvm| apt.is_some_and(|apt| apt.available(&llvm_package(*llvm))));
        let refusal = |llvm: u32| apt?.refused.get(&llvm_package(llvm));
        let from_apt = packages().find(|llvm| refusal(*llvm).is_none());
        match from_apt {
            Some(llvm) if self.state.root => {
                self.packages.push(llvm_package(llvm));
                self.plan.steps.push(build(llvm));
            }
            _ if self.state.binstall => self.plan.steps.push(Step::FetchLinker),
            Some(llvm) => self.packages.push(llvm_package(llvm)),
            None if self.may_update() => self.unknown = true,
            None => {
                let reasons = packages().filter_map(|llvm| Some((llvm_package(llvm), refusal(llvm)?)));
                let reasons = reasons.map(|(package, reason)| format!("{package}: {reason}\n"));
                self.plan.by_hand.push(reasons.collect::<String>() + &missing.by_hand());
            }
        }
    }

    fn lab(&mut self) {
        let Some(apt) = &self.state.apt else {
            let programs: Vec<_> = self.state.missing_tools.iter().map(|tool| tool.program).collect();
            if !programs.is_empty() {
                let how = if self.state.missing_tools.contains(&BUSYBOX) {
                    " (busybox has to be static)"
                } else {
                    ""
                };
                self.plan.by_hand.push(format!(
                    "install {}, as your distribution packages them{how}",
                    programs.join(", ")
                ));
            }
            return;
        };
        for tool in &self.state.missing_tools {
            let package = apt.package(*tool);
            let known = apt.available(package);
            let refused = apt.refused.get(package);
            match (refused, unpacked::of(package)) {
                // New lists may have a version that fits beside the installed packages.
                _ if (!known || refused.is_some()) && self.may_update() => self.unknown = true,
                (Some(reason), Some(package)) => {
                    let step = Step::Unpack { package, reason: reason.clone() };
                    if !self.plan.steps.contains(&step) {
                        self.plan.steps.push(step);
                    }
                }
                (Some(reason), None) => {
                    self.plan.by_hand.push(format!("install {} ({package}): {reason}", tool.program));
                }
                (None, _) if known => {
                    if !self.packages.iter().any(|known| known == package) {
                        self.packages.push(package.to_owned());
                    }
                }
                (None, _) => {
                    self.plan
                        .by_hand
                        .push(format!("install {}: apt knows no package {package}", tool.program));
                }
            }
        }
    }

    fn may_update(&self) -> bool {
        self.state.root && self.state.apt.as_ref().is_some_and(|apt| apt.lists == Lists::Found)
    }

    fn finish(self) -> Plan {
        let Self { state, mut plan, packages, unknown } = self;
        if unknown {
            // New lists may change everything else in this plan.
            return Plan { steps: vec![Step::UpdateLists], by_hand: plan.by_hand };
        }
        if !packages.is_empty() {
            if state.root {
                plan.steps.insert(0, Step::Install { packages });
            } else {
                let packages = packages.join(" ");
                plan.by_hand.push(format!("as root: apt-get install --no-install-recommends {packages}"));
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use wsl_mirror_toolchain::{Linker, Toolchain, Version};

    use super::{
        super::{
            apt::{Apt, OWN, Versions, WEB},
            needs::{ENGINES, LAB, Tool},
        },
        *,
    };

    fn compiler() -> Compiler {
        Compiler {
            cargo: "/usr/bin/cargo".into(),
            rustc: "/usr/bin/rustc".into(),
            release: Version { major: 1, minor: 96 },
            llvm: Version { major: 22, minor: 1 },
        }
    }

    fn without(compiler: Option<Compiler>) -> Missing {
        Missing { compiler, rejected_compilers: Vec::new(), rejected_linkers: Vec::new() }
    }

    fn apt<const N: usize>(candidates: [(&str, &str); N]) -> Apt {
        let package = |version: &str| Versions { installed: None, candidate: Some(version.to_owned()) };
        Apt {
            packages: candidates
                .into_iter()
                .map(|(name, version)| (name.to_owned(), package(version)))
                .collect(),
            ..Apt::default()
        }
    }

    fn bookworm() -> Apt {
        apt([
            ("rustc-web", "1.96.0+dfsg1-1~deb12u2"),
            ("rustc", "1.63.0+dfsg1-2"),
            ("llvm-22-dev", "1:22.1.8-1~deb12u1"),
            ("docker.io", "20.10.24"),
            ("iptables", "1.8.9"),
            ("busybox-static", "1:1.35"),
        ])
    }

    fn install(apt: &mut Apt, name: &str, version: &str) {
        apt.packages.entry(name.to_owned()).or_default().installed = Some(version.to_owned());
    }

    /// A Debian with root, where everything is missing.
    fn debian(apt: Apt) -> State {
        State {
            toolchain: Err(without(None)),
            missing_tools: Vec::new(),
            root: true,
            apt: Some(apt),
            rustup: false,
            binstall: false,
            llvm_dev: Vec::new(),
            overrides: Vec::new(),
        }
    }

    fn installs(packages: &[&str]) -> Step {
        Step::Install { packages: packages.iter().map(ToString::to_string).collect() }
    }

    fn tools(programs: &[&str]) -> Vec<Tool> {
        LAB.into_iter().filter(|tool| programs.contains(&tool.program)).collect()
    }

    #[test]
    fn nothing_is_done_when_nothing_is_missing() {
        let linker = Linker { path: "/bpf-linker".into(), llvm: None };
        let state = State {
            toolchain: Ok(Toolchain { compiler: compiler(), linker }),
            apt: None,
            ..debian(bookworm())
        };
        assert_eq!(plan(&state), Plan::default());
    }

    #[test]
    fn on_debian_the_compiler_comes_first_then_the_linker_for_its_llvm() {
        let state = debian(bookworm());
        assert_eq!(plan(&state).steps, [installs(&WEB)]);
        let state = State { toolchain: Err(without(Some(compiler()))), ..state };
        let build = Step::BuildLinker { compiler: compiler(), llvm: 22 };
        assert_eq!(plan(&state).steps, [installs(&["llvm-22-dev"]), build.clone()]);
        let state = State { llvm_dev: vec![22], ..state };
        assert_eq!(plan(&state).steps, [build]);
    }

    #[test]
    fn a_machine_with_empty_lists_updates_them_once() {
        let state = debian(Apt::default());
        assert_eq!(plan(&state), Plan { steps: vec![Step::UpdateLists], by_hand: Vec::new() });
        let plan = plan(&debian(Apt { lists: Lists::Updated, ..Apt::default() }));
        assert_eq!(plan.steps, []);
        assert!(plan.by_hand[0].contains("security updates"), "{plan:?}");
    }

    #[test]
    fn a_compiler_of_the_users_is_not_removed() {
        let mut packages = bookworm();
        install(&mut packages, "rustc", "1.63.0+dfsg1-2");
        let plan = plan(&debian(Apt { lists: Lists::Updated, ..packages }));
        assert_eq!(plan.steps, []);
        assert!(plan.by_hand[0].contains("excludes rustc-web; `apt-get remove rustc`"), "{plan:?}");
    }

    #[test]
    fn a_release_that_is_new_enough_uses_its_own_compiler() {
        let mut packages = apt([("rustc", "1.97.0+dfsg1-1")]);
        assert_eq!(plan(&debian(packages.clone())).steps, [installs(&OWN)]);
        install(&mut packages, "rustc", "1.97.0+dfsg1-1");
        assert_eq!(plan(&debian(packages)).steps, [installs(&["cargo", "rust-src"])]);
    }

    #[test]
    fn rustup_helps_where_apt_cannot() {
        let trixie = Apt { lists: Lists::Updated, ..apt([("rustc", "1.85.0+dfsg3-1")]) };
        let state = State { rustup: true, ..debian(trixie) };
        assert_eq!(plan(&state).steps, [Step::Rustup]);
        let user = State { rustup: true, root: false, ..debian(bookworm()) };
        assert_eq!(plan(&user).steps, [Step::Rustup]);
        let fedora = State { apt: None, ..state };
        assert_eq!(plan(&fedora).steps, [Step::Rustup]);
    }

    #[test]
    fn who_is_not_root_is_told_the_command() {
        let state = State { root: false, missing_tools: tools(&["iptables"]), ..debian(bookworm()) };
        let plan = plan(&state);
        assert_eq!(plan.steps, []);
        assert_eq!(
            plan.by_hand,
            ["as root: apt-get install --no-install-recommends rustc-web cargo-web rust-web-src iptables"]
        );
    }

    #[test]
    fn docker_is_one_package_or_two() {
        let state = State { missing_tools: tools(&["dockerd", "docker"]), ..debian(bookworm()) };
        let state = State { toolchain: Err(without(Some(compiler()))), llvm_dev: vec![22], ..state };
        assert_eq!(plan(&state).steps[0], installs(&["docker.io"]));
        let mut trixie = bookworm();
        trixie
            .packages
            .insert("docker-cli".to_owned(), Versions { installed: None, candidate: Some("26".to_owned()) });
        assert_eq!(
            plan(&State { apt: Some(trixie), ..state }).steps[0],
            installs(&["docker.io", "docker-cli"])
        );
    }

    #[test]
    fn what_unpacks_engines_comes_from_apt() {
        let state = State { missing_tools: vec![ENGINES[0]], ..debian(apt([("mmdebstrap", "1.3.5-7")])) };
        let state = State { toolchain: Err(without(Some(compiler()))), llvm_dev: vec![22], ..state };
        assert_eq!(plan(&state).steps[0], installs(&["mmdebstrap"]));
    }

    fn refuse(apt: &mut Apt, name: &str) {
        apt.refused.insert(name.to_owned(), "apt would have to remove another".to_owned());
    }

    fn unpacks(name: &str) -> Step {
        let package = unpacked::of(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        Step::Unpack { package, reason: "apt would have to remove another".to_owned() }
    }

    #[test]
    fn refused_tools_are_unpacked_beside_installed_ones() {
        let mut packages = bookworm();
        refuse(&mut packages, "busybox-static");
        let state = State { missing_tools: tools(&["iptables", "busybox"]), ..debian(packages.clone()) };
        assert_eq!(plan(&state).steps, [Step::UpdateLists], "new lists may fit");
        let state = State { apt: Some(Apt { lists: Lists::Updated, ..packages.clone() }), ..state };
        let mut packages_of_apt = WEB.to_vec();
        packages_of_apt.push("iptables");
        assert_eq!(plan(&state).steps, [installs(&packages_of_apt), unpacks("busybox-static")]);
    }

    #[test]
    fn refused_tools_are_unpacked_once_and_without_root() {
        let mut packages = apt([("iproute2", "6.1")]);
        refuse(&mut packages, "iproute2");
        let state = State { root: false, missing_tools: tools(&["ip", "tc"]), ..debian(packages) };
        let state = State { toolchain: Err(without(Some(compiler()))), llvm_dev: vec![22], ..state };
        let build = Step::BuildLinker { compiler: compiler(), llvm: 22 };
        assert_eq!(plan(&state).steps, [build, unpacks("iproute2")]);
    }

    // One conflict made apt refuse everything else of the same command.
    #[test]
    fn refused_compilers_come_from_rustup_or_a_person() {
        let mut packages = Apt { lists: Lists::Updated, ..bookworm() };
        refuse(&mut packages, "cargo-web");
        let state = State { missing_tools: tools(&["iptables"]), ..debian(packages.clone()) };
        let refused = plan(&state);
        assert_eq!(refused.steps, [installs(&["iptables"])]);
        assert!(refused.by_hand[0].contains("cargo-web: apt would have to remove another"), "{refused:?}");
        assert_eq!(plan(&State { rustup: true, ..state }).steps, [installs(&["iptables"]), Step::Rustup]);
        packages.lists = Lists::Found;
        assert_eq!(plan(&debian(packages)).steps, [Step::UpdateLists], "new lists may fit");
    }

    #[test]
    fn refused_llvms_leave_the_next_one_or_binstall() {
        let mut packages = Apt { lists: Lists::Updated, ..bookworm() };
        refuse(&mut packages, "llvm-22-dev");
        let state = State { toolchain: Err(without(Some(compiler()))), ..debian(packages.clone()) };
        let refused = plan(&state);
        assert_eq!(refused.steps, []);
        assert!(
            refused.by_hand[0].starts_with("llvm-22-dev: apt would have to remove another\n"),
            "{refused:?}"
        );
        assert_eq!(plan(&State { binstall: true, ..state.clone() }).steps, [Step::FetchLinker]);
        let next = Versions { installed: None, candidate: Some("1:23.1".to_owned()) };
        packages.packages.insert("llvm-23-dev".to_owned(), next);
        let build = Step::BuildLinker { compiler: compiler(), llvm: 23 };
        let state = State { apt: Some(packages), ..state };
        assert_eq!(plan(&state).steps, [installs(&["llvm-23-dev"]), build]);
    }

    #[test]
    fn refused_engines_are_left_to_a_person() {
        let mut packages = Apt { lists: Lists::Updated, ..bookworm() };
        refuse(&mut packages, "docker.io");
        let plan = plan(&State { missing_tools: tools(&["dockerd"]), ..debian(packages) });
        assert_eq!(plan.by_hand, ["install dockerd (docker.io): apt would have to remove another"]);
    }

    #[test]
    fn a_toolchain_that_the_user_chose_is_not_replaced() {
        let plan = plan(&State { overrides: vec!["WSL_MIRROR_BPF_CARGO"], ..debian(bookworm()) });
        assert_eq!(plan.steps, []);
        assert!(plan.by_hand[0].contains("WSL_MIRROR_BPF_CARGO"), "{plan:?}");
    }

    #[test]
    fn without_apt_the_programs_are_named() {
        let plan = plan(&State { apt: None, missing_tools: tools(&["nft"]), ..debian(bookworm()) });
        assert!(plan.by_hand.iter().any(|text| text.contains("install nft")), "{plan:?}");
        assert!(plan.by_hand.iter().any(|text| text.contains("rust-src")), "{plan:?}");
    }
}
