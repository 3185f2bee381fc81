//! Compilers that have the sources of `core`.

use std::{
    env,
    ffi::OsStr,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    candidates::{Candidates, Rejected},
    environment::{home, is_inherited},
    version::{RustcVersion, Version},
};

/// Names the cargo to build the object with, as a path; the `rustc` beside it is used. It needs no more
/// proof than that it runs: whoever sets this knows their toolchain.
pub const CARGO_OVERRIDE: &str = "WSL_MIRROR_BPF_CARGO";

/// A cargo and its rustc, with the sources of `core` in its sysroot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// The cargo to run, not a rustup proxy: a proxy would choose a toolchain of its own.
    pub cargo: PathBuf,
    /// The rustc that belongs to it.
    pub rustc: PathBuf,
    /// The Rust release.
    pub release: Version,
    /// The LLVM whose bitcode the linker has to read.
    pub llvm: Version,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {} ({})", self.release, self.rustc.display())
    }
}

impl Compiler {
    /// A command that runs this cargo with this rustc, free of what the cargo that runs *us* put into the
    /// environment: its rustc, its flags, its target directory.
    pub fn cargo_command(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        for (name, _) in env::vars_os().filter(|(name, _)| !name.to_str().is_none_or(is_inherited)) {
            command.env_remove(name);
        }
        command
            .env("RUSTC", &self.rustc)
            // Empty switches off a wrapper from the user's cargo configuration: a cache server gains
            // nothing on one small crate, and some do not know the target.
            .env("RUSTC_WRAPPER", "")
            .env("RUSTC_WORKSPACE_WRAPPER", "");
        command
    }
}

/// Oldest Rust that builds this workspace.
pub fn oldest() -> Version {
    Version::parse(env!("CARGO_PKG_RUST_VERSION")).unwrap_or(Version { major: 1, minor: 0 })
}

/// Looks for compilers: the override alone if there is one, else rustup's toolchains, then `/usr`.
pub(crate) fn read() -> Candidates<Compiler> {
    let mut found = Candidates::none();
    if let Some(cargo) = env::var_os(CARGO_OVERRIDE).filter(|value| !value.is_empty()) {
        let cargo = PathBuf::from(cargo);
        let rustc = cargo.with_file_name("rustc");
        let probed = if cargo.is_file() {
            probe(cargo, rustc)
        } else {
            Err(Rejected { path: cargo, reason: "is no file".to_owned() })
        };
        match probed {
            Ok(compiler) => found.usable.push(compiler),
            Err(rejected) => found.rejected.push(Rejected {
                reason: format!("is named by {CARGO_OVERRIDE} and {}", rejected.reason),
                ..rejected
            }),
        }
        return found;
    }
    let mut sysroots = rustup_toolchains();
    sysroots.sort_by_key(|path| rank(path.file_name().unwrap_or_default()));
    // Debian's rustc-web with rust-web-src, or any distribution's rustc with its rust-src package. Where
    // the packages are linked into rustup as well, the sysroot is the same directory: probe it once.
    let usr = PathBuf::from("/usr");
    if !sysroots.iter().any(|sysroot| fs::canonicalize(sysroot).is_ok_and(|real| real == usr)) {
        sysroots.push(usr);
    }
    for sysroot in sysroots {
        match look(&sysroot) {
            Ok(compiler) => found.usable.push(compiler),
            Err(rejected) if rejected.path.exists() => found.rejected.push(rejected),
            Err(_) => {}
        }
    }
    found
}

/// Toolchains that rustup knows, without asking it: the proxy takes longer than everything else here.
fn rustup_toolchains() -> Vec<PathBuf> {
    let Some(rustup) =
        env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".rustup")))
    else {
        return Vec::new();
    };
    let entries = fs::read_dir(rustup.join("toolchains")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Nightly first, as the aya template has it; among the others the newest name first. A toolchain that is
/// a link to another one is the same twice, which costs one probe.
fn rank(name: &OsStr) -> (bool, std::cmp::Reverse<String>) {
    let name = name.to_string_lossy().into_owned();
    (!name.starts_with("nightly"), std::cmp::Reverse(name))
}

fn look(sysroot: &Path) -> Result<Compiler, Rejected> {
    let bin = sysroot.join("bin");
    let (cargo, rustc) = (bin.join("cargo"), bin.join("rustc"));
    if !cargo.exists() || !rustc.exists() {
        return Err(Rejected { path: rustc, reason: "has no cargo beside it".to_owned() });
    }
    if !has_core_sources(sysroot) {
        return Err(Rejected { path: rustc, reason: "comes without rust-src".to_owned() });
    }
    probe(cargo, rustc)
}

/// `-Z build-std` reads the lock file of the standard library first, then `core` itself.
fn has_core_sources(sysroot: &Path) -> bool {
    let library = sysroot.join("lib/rustlib/src/rust/library");
    library.join("Cargo.lock").exists() && library.join("core/Cargo.toml").exists()
}

fn probe(cargo: PathBuf, rustc: PathBuf) -> Result<Compiler, Rejected> {
    let reject = |path: PathBuf, reason: String| Err(Rejected { path, reason });
    let output = match Command::new(&rustc).arg("-vV").env_remove("RUSTUP_TOOLCHAIN").output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => return reject(rustc, format!("answered `-vV` with {}", output.status)),
        Err(error) => return reject(rustc, format!("could not be run ({error})")),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(RustcVersion { release, llvm }) = RustcVersion::parse(&text) else {
        return reject(rustc, format!("answered `-vV` with {:?}", text.trim()));
    };
    if release < oldest() {
        return reject(rustc, format!("is Rust {release}, and {} is needed", oldest()));
    }
    Ok(Compiler { cargo, rustc, release, llvm })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nightly_comes_first_then_the_newest() {
        let mut names = ["1.95.0-x86_64", "stable-x86_64", "nightly-x86_64", "1.96.0-x86_64"].map(OsStr::new);
        names.sort_by_key(|name| rank(name));
        assert_eq!(names, ["nightly-x86_64", "stable-x86_64", "1.96.0-x86_64", "1.95.0-x86_64"]);
    }

    #[test]
    fn the_inner_cargo_gets_its_own_rustc_and_no_wrapper() {
        let compiler = Compiler {
            cargo: "/t/bin/cargo".into(),
            rustc: "/t/bin/rustc".into(),
            release: Version { major: 1, minor: 96 },
            llvm: Version { major: 22, minor: 1 },
        };
        let command = compiler.cargo_command();
        let set = |name: &str| {
            command
                .get_envs()
                .find(|(key, _)| *key == name)
                .and_then(|(_, value)| value)
                .map(OsStr::to_os_string)
        };
        assert_eq!(set("RUSTC").as_deref(), Some(OsStr::new("/t/bin/rustc")));
        assert_eq!(set("RUSTC_WRAPPER").as_deref(), Some(OsStr::new("")));
        // Cargo runs this test with it set.
        assert!(command.get_envs().any(|(key, value)| key == "CARGO_MANIFEST_DIR" && value.is_none()));
    }
}
