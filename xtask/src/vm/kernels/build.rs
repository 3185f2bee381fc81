//! Builds a kernel from Debian's package of its sources.
//!
//! The package need not be of this machine's release: apt is given lists of its own, so that nothing of the
//! machine's configuration changes, and packages are unpacked, not installed.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail};

use super::{cache, configuration::configuration, known::Known};
use crate::{
    debian::{self, KEYRING},
    progress,
    setup::{self, Needs, Outcome},
};

const HINT: &str = "kernels are built from Debian's packages, so on a Debian machine; elsewhere, copy a cache of \
                    kernels and name it in WSL_MIRROR_KERNELS";

/// Builds the kernel into the cache, and returns where it is.
///
/// # Errors
/// Something is missing and cannot be installed, no suite has the package any more, or the build fails; the log
/// is named.
pub(super) fn build(known: &Known) -> Result<PathBuf> {
    if matches!(setup::ensure(Needs::Kernels)?, Outcome::Missing) {
        bail!("the kernel {} cannot be built without what is named above", known.name);
    }
    let folder = cache::writable()?;
    // Held until the end: another build of this kernel waits, and finds the image.
    let lock = folder.join(format!("build-{}.lock", known.name));
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _lock =
        lock.with_context(|| format!("locking the build of {} in {}", known.name, folder.display()))?;
    if let Some(image) = cache::find(known) {
        return Ok(image);
    }
    let work = folder.join(format!("build-{}", known.name));
    // An interrupted build may have left it.
    remove(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
    let log = folder.join(format!("build-{}.log", known.name));
    let tree = sources(known, &work, &log)?;
    let bz_image = compile(known, &tree, &log)?;
    // Under its own name only when it is complete: a user may interrupt a build at any moment.
    let image = folder.join(format!("vmlinuz-{}", known.name));
    let partial = folder.join(format!(".vmlinuz-{}-{}", known.name, std::process::id()));
    fs::copy(&bz_image, &partial)
        .with_context(|| format!("copying {} to {}", bz_image.display(), partial.display()))?;
    // The old image goes first: beside the new configuration it would pass for a new one.
    if image.exists() {
        fs::remove_file(&image).with_context(|| format!("removing {}", image.display()))?;
    }
    let beside = cache::configuration_of(&image);
    fs::write(&beside, configuration(known)).with_context(|| format!("writing {}", beside.display()))?;
    fs::rename(&partial, &image).with_context(|| format!("renaming {}", partial.display()))?;
    remove(&work)?;
    Ok(image)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Downloads and unpacks the sources; returns the top of their tree.
fn sources(known: &Known, work: &Path, log: &Path) -> Result<PathBuf> {
    let mirror = debian::mirror(HINT)?;
    let apt = work.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder)).with_context(|| format!("creating {folder}"))?;
    }
    let mut last = None;
    for suite in known.suites {
        fs::write(apt.join("sources.list"), format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .context("writing apt's sources")?;
        let update = format!("read what {suite} has");
        let download = format!("download {} of {suite}", known.package);
        let found = step(&update, apt_get(&apt, &["update"]).current_dir(work), log).and_then(|()| {
            step(&download, apt_get(&apt, &["download", known.package]).current_dir(work), log)
        });
        match found {
            Ok(()) => {
                last = None;
                break;
            }
            Err(error) => last = Some(error),
        }
    }
    if let Some(error) = last {
        return Err(error).with_context(|| {
            format!(
                "no suite of {} has {} any more; build a kernel by hand and put it into the cache as vmlinuz-{}",
                known.suites.join(", "),
                known.package,
                known.name
            )
        });
    }
    let unpack = format!("unpack {}", known.package);
    let script = format!(
        "dpkg-deb -x {package}_*.deb unpacked && mkdir tree && \
         tar -xf unpacked/usr/src/{package}.tar.* -C tree --strip-components=1",
        package = known.package
    );
    step(&unpack, Command::new("sh").args(["-ec", &script]).current_dir(work), log)?;
    Ok(work.join("tree"))
}

/// apt-get that knows only our one suite, and touches nothing of the machine's.
fn apt_get(own: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    let mut set = |name: &str, value: &str| {
        command.arg("-o").arg(format!("{name}={value}"));
    };
    let path = |name: &str| own.join(name).display().to_string();
    set("Dir::Etc::SourceList", &path("sources.list"));
    set("Dir::Etc::SourceParts", "-");
    set("Dir::State::Lists", &path("lists"));
    set("Dir::State::Status", "/dev/null");
    set("Dir::Cache", &path("cache"));
    set("Acquire::Languages", "none");
    set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
    // The folder is the user's own; apt's unprivileged user cannot get there.
    set("APT::Sandbox::User", "root");
    command.args(arguments).env("LC_ALL", "C.UTF-8");
    command
}

fn compile(known: &Known, tree: &Path, log: &Path) -> Result<PathBuf> {
    fs::write(tree.join("ours.config"), configuration(known)).context("writing the configuration")?;
    let configure =
        "make tinyconfig && ./scripts/kconfig/merge_config.sh -m .config ours.config && make olddefconfig";
    let make = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(tree).env("LC_ALL", "C.UTF-8");
        setup::equip(&mut command);
        // A cargo or a make around this one has settings of its own for its children.
        for variable in ["MAKEFLAGS", "MFLAGS", "ARCH", "CROSS_COMPILE", "KCONFIG_CONFIG"] {
            command.env_remove(variable);
        }
        command
    };
    step(&format!("configure {}", known.name), &mut make(configure), log)?;
    let dropped = dropped(&configuration(known), tree)?;
    if !dropped.is_empty() {
        bail!("of the configuration of {}, its dependencies leave out: {}", known.name, dropped.join(", "));
    }
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    step(
        &format!("build the kernel {} (some 8 minutes on two cores)", known.name),
        &mut make(&format!("make -j{jobs} bzImage")),
        log,
    )?;
    Ok(tree.join("arch/x86/boot/bzImage"))
}

/// Symbols that this version knows, and whose setting differs from ours: kconfig silently drops a symbol that lacks a
/// dependency.
fn dropped(ours: &str, tree: &Path) -> Result<Vec<String>> {
    let path = tree.join(".config");
    let made = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let known = Command::new("grep")
        .args(["-rhoE", "--include=Kconfig*", r"^\s*(menu)?config\s+[A-Z0-9_]+"])
        .arg(tree)
        .output()
        .context("asking for the symbols of this version")?;
    let known = String::from_utf8_lossy(&known.stdout);
    let known: HashSet<&str> = known.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    Ok(unlike_ours(ours, &made, |symbol| known.contains(symbol)))
}

/// The settings of `ours` that are not in `made`, of symbols that exist.
fn unlike_ours(ours: &str, made: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let set = |text: &str| -> HashMap<String, String> {
        text.lines()
            .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    let made = set(made);
    let mut missing: Vec<String> = set(ours)
        .into_iter()
        .filter(|(name, value)| exists(name) && made.get(name).map_or("n", String::as_str) != value)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    missing.sort();
    missing
}

fn step(name: &str, command: &mut Command, log: &Path) -> Result<()> {
    progress::command("kernels", name, command, log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_symbols_are_named() {
        let ours = "# why\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=y\nCONFIG_E=n\n";
        let made = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\n";
        assert_eq!(unlike_ours(ours, made, |symbol| symbol != "D"), ["B=y", "C=n"]);
    }
}
