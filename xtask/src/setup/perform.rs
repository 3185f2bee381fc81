//! Carries a step of the plan out.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use wsl_mirror_toolchain::{LINKER_RELEASE, tools_dir};

use super::{apt, machine::Machine, plan::Step, unpacked};
use crate::progress;

/// Installs packages; new daemons neither start nor become enabled.
const INSTALL: &str = include_str!("install.sh");

/// The package of the container engine.
const ENGINE: &str = "docker.io";

/// The services that the packages bring, themselves or by what they depend on.
fn services(packages: &[String]) -> &'static str {
    if packages.iter().any(|package| package == ENGINE) { "docker containerd" } else { "" }
}

/// Does one step, with its output in the log.
pub(super) fn perform(machine: &Machine, step: &Step) -> Result<()> {
    let mut command = match step {
        Step::UpdateLists => apt(machine, &["apt-get", "update"]),
        Step::Install { packages } => {
            let mut command = apt(machine, &["sh", "-c", INSTALL, "install.sh", "", services(packages)]);
            command.args(apt::INSTALL).args([
                "-o",
                "DPkg::Lock::Timeout=120",
                "-o",
                "Dpkg::Options::=--force-confold",
            ]);
            command.args(packages);
            command
        }
        Step::Unpack { package, .. } => return unpacked::make(machine, package, &step.to_string()),
        Step::Rustup => {
            let mut command = Command::new("rustup");
            command.args([
                "toolchain",
                "install",
                "nightly",
                // rustup itself stays in the user's version.
                "--no-self-update",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ]);
            command
        }
        Step::BuildLinker { compiler, llvm } => {
            let mut command = compiler.cargo_command();
            command
                .args(["install", "bpf-linker", "--version", LINKER_RELEASE, "--locked", "--force"])
                .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
                .arg(tools()?)
                .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
                // LLVM does the work; optimising what calls it takes twice as long and gains nothing.
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
                .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
            command
        }
        Step::FetchLinker => {
            let mut command = Command::new("cargo");
            command.args(["binstall", "--no-confirm", "--version", LINKER_RELEASE, "--root"]).arg(tools()?);
            command.arg("bpf-linker");
            command
        }
    };
    progress::command("setup", &step.to_string(), &mut command, &machine.log())?;
    if matches!(step, Step::Install { packages } if !services(packages).is_empty()) {
        eprintln!(
            "setup: Docker's daemon was neither started nor enabled; the lab starts its own. \
             `systemctl enable --now docker` if you want one."
        );
    }
    Ok(())
}

fn apt(machine: &Machine, words: &[&str]) -> Command {
    let mut command = machine.command(words[0]);
    // needrestart, where it is installed, asks which services to restart, or restarts them.
    command.args(&words[1..]).env("NEEDRESTART_MODE", "l").env("APT_LISTCHANGES_FRONTEND", "none");
    command
}

fn tools() -> Result<PathBuf> {
    tools_dir().context("setup: no folder to install bpf-linker into: HOME is not set, nor XDG_CACHE_HOME")
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::Path,
    };

    use super::*;

    /// A machine in a folder. Its apt-get is a script that fills the folder as docker.io does.
    struct Fixture(PathBuf);

    impl Fixture {
        fn new(name: &str) -> Self {
            let root = env::temp_dir().join(format!("wsl-mirror-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            for folder in
                ["bin", "usr/sbin", "etc/init.d", "lib/systemd/system", "usr/local/lib/systemd/system"]
            {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            fs::create_dir_all(root.join("etc/systemd/system/multi-user.target.wants")).unwrap();
            let fixture = Self(root);
            fixture.script(
                "apt-get",
                "test -x \"$ROOT/usr/sbin/policy-rc.d\" || exit 9\ncd \"$ROOT\"\n\
                 touch etc/init.d/docker lib/systemd/system/docker.service lib/systemd/system/containerd.service\n\
                 for unit in docker containerd; do\n\
                 ln -sf /lib/systemd/system/$unit.service etc/systemd/system/multi-user.target.wants/\n\
                 done\nexit ${STATUS-0}\n",
            );
            fixture.script("update-rc.d", "echo \"$@\" >>\"$ROOT/rc\"\n");
            fixture
        }

        fn script(&self, name: &str, text: &str) {
            let path = self.0.join("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        /// Installs the packages; returns the exit code of the script.
        fn install(&self, packages: &[&str], status: &str) -> Option<i32> {
            let packages: Vec<_> = packages.iter().map(|name| (*name).to_owned()).collect();
            let path = format!("{}:{}", self.0.join("bin").display(), env::var("PATH").unwrap());
            let mut command = Command::new("sh");
            command.args(["-c", INSTALL, "install.sh"]).arg(&self.0).arg(services(&packages)).args(&packages);
            command.env("PATH", path).env("ROOT", &self.0).env("STATUS", status);
            let output = command.output().unwrap();
            assert!(!self.has("usr/sbin/policy-rc.d"), "policy-rc.d stays behind");
            output.status.code()
        }

        fn has(&self, path: &str) -> bool {
            self.0.join(path).symlink_metadata().is_ok()
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const DOCKER: &str = "etc/systemd/system/multi-user.target.wants/docker.service";
    const CONTAINERD: &str = "etc/systemd/system/multi-user.target.wants/containerd.service";

    #[test]
    fn new_daemons_are_disabled() {
        let fixture = Fixture::new("new-daemons");
        assert_eq!(fixture.install(&["docker.io"], "0"), Some(0));
        assert!(!fixture.has(DOCKER) && !fixture.has(CONTAINERD));
        assert_eq!(fs::read_to_string(fixture.0.join("rc")).unwrap(), "docker disable\n");
    }

    #[test]
    fn new_daemons_are_disabled_after_a_failure() {
        let fixture = Fixture::new("failed-install");
        assert_eq!(fixture.install(&["docker.io"], "100"), Some(100));
        assert!(!fixture.has(DOCKER) && !fixture.has(CONTAINERD));
    }

    // Links of a Docker from elsewhere were deleted.
    #[test]
    fn units_of_the_user_stay_enabled() {
        for unit in ["etc/systemd/system/docker.service", "usr/local/lib/systemd/system/docker.service"] {
            let fixture = Fixture::new("users-units");
            fs::write(fixture.0.join(unit), "").unwrap();
            symlink(Path::new("/").join(unit), fixture.0.join(DOCKER)).unwrap();
            assert_eq!(fixture.install(&["docker.io"], "0"), Some(0));
            assert!(fixture.has(unit) && fixture.has(DOCKER), "{unit}");
            assert!(!fixture.has(CONTAINERD), "{unit}");
        }
    }

    #[test]
    fn other_packages_disable_nothing() {
        let fixture = Fixture::new("other-packages");
        assert_eq!(fixture.install(&["strace"], "0"), Some(0));
        assert!(fixture.has(DOCKER) && fixture.has(CONTAINERD) && !fixture.has("rc"));
    }
}
