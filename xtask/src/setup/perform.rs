//! Carries a step of the plan out.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use wsl_mirror_toolchain::{LINKER_RELEASE, tools_dir};

use super::{apt, host::Host, plan::Step, unpacked};
use crate::progress;

/// Runs `apt-get install "$@"` and keeps the daemons that come along from being started, and from being
/// started at the next boot: this is a test's machine, or a developer's, and neither asked for a container
/// engine that changes the firewall. dpkg's own hook for this is `policy-rc.d`, which must not stay behind.
/// One of the user's is left alone: then theirs decides.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
mark='# wsl-mirror: cargo xtask setup'
if [ -e "$policy" ] && ! grep -qxF "$mark" "$policy"; then
    echo "leaving $policy as it is"
else
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
fi
new=
for service in docker containerd; do
    [ -e /lib/systemd/system/$service.service ] || [ -e /etc/init.d/$service ] || new="$new $service"
done
apt-get install "$@" || exit
for service in $new; do
    # What `systemctl disable` does, also where there is no systemctl; deb-systemd-helper leaves them.
    for unit in $service.service $service.socket; do
        find /etc/systemd/system -type l -lname "*/$unit" -delete
    done
    [ -e /etc/init.d/$service ] && update-rc.d $service disable
done
exit 0
"#;

/// Does one step, with its output in the log.
pub(super) fn perform(host: &Host, step: &Step) -> Result<()> {
    let mut command = match step {
        Step::UpdateLists => apt(host, &["apt-get", "update"]),
        Step::Install { packages } => {
            let mut command = apt(host, &["sh", "-c", INSTALL, "apt-get"]);
            command.args(apt::INSTALL).args([
                "-o",
                "DPkg::Lock::Timeout=120",
                "-o",
                "Dpkg::Options::=--force-confold",
            ]);
            command.args(packages);
            command
        }
        Step::Unpack { package, .. } => return unpacked::make(host, package, &step.to_string()),
        Step::Rustup => {
            let mut command = Command::new("rustup");
            command.args([
                "toolchain",
                "install",
                "nightly",
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
    progress::command("setup", &step.to_string(), &mut command, &host.log())?;
    if matches!(step, Step::Install { packages } if packages.iter().any(|package| package == "docker.io")) {
        eprintln!(
            "setup: Docker's daemon was neither started nor enabled; the lab starts its own. \
             `systemctl enable --now docker` if you want one."
        );
    }
    Ok(())
}

fn apt(host: &Host, words: &[&str]) -> Command {
    let mut command = host.command(words[0]);
    // needrestart, where it is installed, asks which services to restart, or restarts them.
    command.args(&words[1..]).env("NEEDRESTART_MODE", "l").env("APT_LISTCHANGES_FRONTEND", "none");
    command
}

fn tools() -> Result<PathBuf> {
    tools_dir().context("setup: no folder to install bpf-linker into: HOME is not set, nor XDG_CACHE_HOME")
}
