//! `cargo xtask dist`: the package and the tarball, of one statically linked program; and the folders that they are tried
//! in.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cargo::{self, Profile},
    debian::{self, KEYRING},
    progress,
    setup::{self, Needs, Outcome},
};

/// The release of cargo-deb that is installed where there is none.
const RELEASE: &str = "3.8.0";
/// Names the folder of what was made to the lab's tests.
pub(crate) const OVERRIDE: &str = "WSL_MIRROR_DIST";
/// What every test of it has in its name.
pub(crate) const TESTS: &str = "packages::";
/// The lab's test binary of them.
pub(crate) const BINARY: &str = "loader";
/// An older release, to be upgraded from: today's program under another number, as there is no older package.
const PREVIOUS: &str = "0.0.1-1";
/// Debian's releases that they are tried in, with what they have besides the essential: the package's, which is booted, and
/// one with a glibc older than the one that is linked in.
const SUITES: [(&str, &str); 2] =
    [("bookworm", "init-system-helpers,systemd"), ("bullseye", "init-system-helpers")];

/// What was made, in one folder.
pub(crate) struct Made {
    pub(crate) folder: PathBuf,
    pub(crate) deb: PathBuf,
    pub(crate) tarball: PathBuf,
}

/// Builds and packs.
pub(crate) fn make() -> Result<Made> {
    let cargo_deb = cargo::tool("dist", "cargo-deb", RELEASE)?;
    let binary = cargo::build_static()?;
    let release = binary.parent().context("the program lies in no folder")?;
    let folder = release.parent().context("no target directory")?.join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let assets = release.join("assets");
    let generator = cargo::build("xtask-assets", Profile::Release)?;
    run("generate completions and man pages", Command::new(generator).arg(&assets), &folder)?;
    let version = env!("CARGO_PKG_VERSION");
    let deb = package(&cargo_deb, &format!("{version}-1"), &folder)?;
    let tarball = tarball(&binary, &assets, version, &folder)?;
    Ok(Made { folder, deb, tarball })
}

/// The same, and what the tests need besides: a package to upgrade from, and folders of releases of Debian.
pub(crate) fn make_for_tests() -> Result<Made> {
    if matches!(setup::ensure(Needs::Engines)?, Outcome::Missing) {
        bail!("the folders to try packages in cannot be had without what is named above");
    }
    let made = make()?;
    package(&cargo::tool("dist", "cargo-deb", RELEASE)?, PREVIOUS, &made.folder)?;
    for (suite, packages) in SUITES {
        root(&made.folder.join("roots"), suite, packages)?;
    }
    Ok(made)
}

fn package(cargo_deb: &Path, version: &str, folder: &Path) -> Result<PathBuf> {
    let deb = folder.join(format!("wsl-mirror_{version}.deb"));
    let mut command = cargo::with_our_toolchain(Command::new(cargo_deb));
    command
        .current_dir(cargo::workspace())
        .args(["--no-build", "--no-strip", "--locked", "--package", "wsl-mirror"])
        .args(["--deb-version", version, "--output"])
        .arg(&deb);
    run(&format!("make {}", deb.display()), &mut command, folder)?;
    Ok(deb)
}

/// What is in the tarball, and from where.
fn tarball(binary: &Path, assets: &Path, version: &str, folder: &Path) -> Result<PathBuf> {
    let machine = cargo::host()?;
    let machine = machine.split('-').next().unwrap_or_default();
    let name = format!("wsl-mirror-{version}-linux-{machine}");
    let content = folder.join(&name);
    let _ = fs::remove_dir_all(&content);
    fs::create_dir_all(&content).with_context(|| format!("creating {}", content.display()))?;
    let workspace = cargo::workspace();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(binary).args([assets.join("man"), assets.join("completions")]);
    copy.args(
        ["README.md", "ARCHITECTURE.md", "LICENSE", "LICENSE-GPL-2.0"].map(|name| workspace.join(name)),
    );
    run("collect what is in the tarball", copy.arg(&content), folder)?;
    // As they lie here, so that the links between them lead somewhere.
    let mut copy = Command::new("cp");
    copy.current_dir(workspace).args(["--parents", "docs/engines.md"]);
    copy.args(["contrib/wsl-mirror.toml", "contrib/wsl-mirror.service"]);
    run("collect what lies in folders of it", copy.arg(&content), folder)?;
    let tarball = folder.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "-C"]).arg(folder).arg("-czf");
    run(&format!("make {}", tarball.display()), tar.arg(&tarball).arg(&name), folder)?;
    fs::remove_dir_all(&content).with_context(|| format!("removing {}", content.display()))?;
    Ok(tarball)
}

/// A release of Debian in a folder, as small as it can be and still install packages.
fn root(folder: &Path, suite: &str, packages: &str) -> Result<()> {
    let whole = folder.join(suite);
    if whole.is_dir() {
        return Ok(());
    }
    let mirror =
        debian::mirror("packages are tried in folders of Debian's releases, so on a Debian machine")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let partial = folder.join(format!(".{suite}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    let mut mmdebstrap = Command::new("mmdebstrap");
    setup::equip(&mut mmdebstrap);
    mmdebstrap.args(["--mode=root", "--variant=essential", "--format=directory"]);
    mmdebstrap.arg(format!("--include={packages}")).arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    for option in debian::transport()? {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    mmdebstrap.arg(suite).arg(&partial).arg(format!("deb [signed-by={KEYRING}] {mirror} {suite} main"));
    mmdebstrap.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").current_dir(folder);
    run(&format!("make a folder of {suite} (half a minute on two cores)"), &mut mmdebstrap, folder)?;
    fs::rename(&partial, &whole).with_context(|| format!("renaming {}", partial.display()))
}

fn run(name: &str, command: &mut Command, folder: &Path) -> Result<()> {
    progress::step("dist", name, command, &folder.join("dist.log"))
}
