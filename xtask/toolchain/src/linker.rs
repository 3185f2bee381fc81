//! `bpf-linker`, and which LLVM it has inside.

use std::{
    env,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    candidates::{Candidates, Rejected},
    compiler::Compiler,
    environment::home,
    version::{Version, llvm_of_linker},
};

/// Names the bpf-linker to use, as a path; its version is not asked.
pub const LINKER_OVERRIDE: &str = "WSL_MIRROR_BPF_LINKER";

/// A linker that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// Where it is.
    pub path: PathBuf,
    /// The LLVM that it reads bitcode with; `None` for one that the user named.
    pub llvm: Option<Version>,
}

impl Linker {
    /// Whether it can read what this compiler writes. LLVM reads the bitcode of every older release, and
    /// the format only changes with the major number.
    pub fn reads(&self, compiler: &Compiler) -> bool {
        self.llvm.is_none_or(|llvm| llvm.major >= compiler.llvm.major)
    }

    pub(crate) fn too_old_for(self, compiler: &Compiler) -> Rejected {
        let has = self.llvm.map_or_else(|| "an unknown LLVM".to_owned(), |llvm| format!("LLVM {llvm}"));
        Rejected {
            path: self.path,
            reason: format!("has {has}, and rustc {} writes LLVM {}", compiler.release, compiler.llvm),
        }
    }
}

/// Where `cargo xtask setup` installs tools: `$XDG_CACHE_HOME/wsl-mirror/tools`, below `~/.cache` by default.
/// Outside of the target directory, so that `cargo clean` does not cost a minute of building the linker.
pub fn tools_dir() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    Some(cache.or_else(|| Some(home()?.join(".cache")))?.join("wsl-mirror/tools"))
}

/// The release of bpf-linker that this project is built and tested with.
pub const LINKER_RELEASE: &str = "0.13.0";

/// How `bpf-linker` is built against the distribution's LLVM.
pub(crate) fn install_command(llvm: u32) -> String {
    format!(
        "LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo install bpf-linker --version {LINKER_RELEASE} --locked --no-default-features --features llvm-{llvm}"
    )
}

/// Looks for linkers: the override alone if there is one, else ours, then `PATH`, then cargo's.
///
/// Ours first, because `setup` only ever installed it when no other would do.
pub(crate) fn read() -> Candidates<Linker> {
    let mut found = Candidates::none();
    if let Some(path) = env::var_os(LINKER_OVERRIDE).filter(|value| !value.is_empty()).map(PathBuf::from) {
        if is_executable(&path) {
            found.usable.push(Linker { path, llvm: None });
        } else {
            let reason = format!("is named by {LINKER_OVERRIDE} and is no executable file");
            found.rejected.push(Rejected { path, reason });
        }
        return found;
    }
    let ours = tools_dir().map(|tools| tools.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
    let folders =
        ours.into_iter().chain(env::split_paths(&path)).chain(cargo_home.map(|cargo| cargo.join("bin")));
    let mut seen = Vec::new();
    for path in folders.map(|folder| folder.join("bpf-linker")) {
        if !path.is_file() || seen.contains(&path) {
            continue;
        }
        seen.push(path.clone());
        match probe(&path) {
            Ok(llvm) => found.usable.push(Linker { path, llvm: Some(llvm) }),
            Err(reason) => found.rejected.push(Rejected { path, reason }),
        }
    }
    found
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Asks which LLVM is inside. `bpf-linker --version` names only itself; `--version` handed on to LLVM makes
/// LLVM answer and end the process, before the (impossible) output is opened.
fn probe(path: &Path) -> Result<Version, String> {
    if !is_executable(path) {
        return Err("is not executable".to_owned());
    }
    let output = Command::new(path)
        .args(["--llvm-args=--version", "--output", "/nonexistent/bpf-linker-version", "/dev/null"])
        .output()
        .map_err(|error| format!("could not be run ({error})"))?;
    llvm_of_linker(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = stderr.lines().find(|line| !line.is_empty()).unwrap_or("nothing");
        format!("does not say which LLVM it has ({}: {said})", output.status)
    })
}
