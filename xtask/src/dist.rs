//! `cargo xtask dist`: the package and the tarball, of one statically linked program, and the folders for their tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build::{self, Profile, cargo},
    debian::{self, KEYRING},
    exit_code::ExitCode,
    progress,
    setup::{self, Needs, Outcome},
};

/// The release of cargo-deb that xtask installs where there is none.
const RELEASE: &str = "3.8.0";
/// Names the folder of package and tarball to the lab's tests.
pub(crate) const OVERRIDE: &str = "WSL_MIRROR_DIST";
/// Every test of the package has this in its name.
pub(crate) const TESTS: &str = "packages::";
/// The lab's test binary that has these tests.
pub(crate) const BINARY: &str = "loader";
/// The release that a test upgrades from. No older package exists, so it is today's program under another number.
const PREVIOUS: &str = "0.0.1-1";
/// The Debian releases of the tests, and what each has besides the essential. bookworm is booted; bullseye's glibc is
/// older than the one that is linked in.
const SUITES: [(&str, &str); 2] =
    [("bookworm", "init-system-helpers,systemd"), ("bullseye", "init-system-helpers")];

/// Make a package for Debian and Ubuntu, and a tarball for every Linux
#[derive(Args)]
pub(crate) struct Dist {}

impl Dist {
    pub(crate) fn exec(self) -> Result<ExitCode> {
        let Self {} = self;
        if matches!(setup::ensure(Needs::Build)?, Outcome::Missing) {
            return Ok(ExitCode::Missing);
        }
        let made = make()?;
        for path in [&made.deb, &made.tarball] {
            println!("{}", path.display());
        }
        Ok(ExitCode::Success)
    }
}

/// Package and tarball, in one folder.
pub(crate) struct Made {
    pub(crate) folder: PathBuf,
    pub(crate) deb: PathBuf,
    pub(crate) tarball: PathBuf,
}

/// Builds and packs.
pub(crate) fn make() -> Result<Made> {
    let cargo_deb = cargo::tool("dist", "cargo-deb", RELEASE)?;
    let binary = build::static_product()?;
    let release = binary.parent().context("the program lies in no folder")?;
    let folder = release.parent().context("no target directory")?.join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let assets = release.join("assets");
    let generator = build::package("xtask-assets", Profile::Release)?;
    run("generate completions and man pages", Command::new(generator).arg(&assets), &folder)?;
    let version = env!("CARGO_PKG_VERSION");
    let deb = package(&cargo_deb, &format!("{version}-1"), &folder)?;
    let tarball = tarball(&binary, &assets, version, &folder)?;
    Ok(Made { folder, deb, tarball })
}

/// [`make`], with a package to upgrade from, and folders of Debian's releases.
pub(crate) fn make_for_tests() -> Result<Made> {
    if matches!(setup::ensure(Needs::Engines)?, Outcome::Missing) {
        bail!("folders for the packages' tests need what is named above");
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

/// Packs the program, its man pages, completions and documents.
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
    copy.current_dir(workspace).arg("--parents");
    copy.args(["docs/engines.md", "docs/how-it-works.md", "docs/performance.md", "docs/traffic.svg"]);
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
    let root = folder.join(suite);
    if root.is_dir() {
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
    fs::rename(&partial, &root).with_context(|| format!("renaming {}", partial.display()))
}

fn run(name: &str, command: &mut Command, folder: &Path) -> Result<()> {
    progress::command("dist", name, command, &folder.join("dist.log"))
}
