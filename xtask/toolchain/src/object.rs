//! Builds an eBPF object for a build script.
//!
//! The object is built by a cargo of its own: it needs another target, the sources of `core`, another linker and always
//! optimisation, none of which cargo can say of one package of a workspace.

use std::{
    env,
    ffi::OsStr,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use crate::{OVERRIDES, TARGET, Toolchain};

/// A package of this workspace whose binary of the same name is an eBPF object.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// The package's name, and its binary's.
    pub package: &'a str,
    /// The folders of the package and of the crates that it links, from the workspace's.
    pub folders: &'a [&'a str],
}

/// Why there is no object, for the person at the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError(String);

impl std::error::Error for BuildError {}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Object<'_> {
    /// Builds the object into `OUT_DIR`, and tells cargo when to run the build script again. Returns the object's path.
    ///
    /// `workspace` is the workspace's folder. Only build scripts may call this: it prints for cargo.
    ///
    /// # Errors
    /// [`BuildError`] names what is missing and how to install it, or the step that failed.
    pub fn build(&self, workspace: &Path) -> Result<PathBuf, BuildError> {
        self.watch(workspace);
        let toolchain = crate::find().map_err(|missing| {
            BuildError(format!(
                "the eBPF object cannot be built: {missing}\n\nRun `cargo xtask setup`, or install by hand:\n{}\n",
                missing.by_hand()
            ))
        })?;
        // Another linker or compiler makes another object.
        println!("cargo:rerun-if-changed={}", toolchain.linker.path.display());
        println!("cargo:rerun-if-changed={}", toolchain.compiler.rustc.display());

        let out_dir = path_var("OUT_DIR")?;
        let built = self.run_cargo(&toolchain, workspace, &out_dir)?;
        let object = out_dir.join(self.package);
        fs::copy(&built, &object).map_err(|error| {
            let (from, to) = (built.display(), object.display());
            BuildError(format!("copying the eBPF object from {from} to {to}: {error}"))
        })?;
        Ok(object)
    }

    /// Everything that the object is made of. Cargo compares these with the last run of the build script; the inner
    /// cargo, which would know better, is only asked after that.
    fn watch(&self, workspace: &Path) {
        let crates = self.folders.iter().map(|folder| workspace.join(folder));
        let files = crates.flat_map(|folder| [folder.join("src"), folder.join("Cargo.toml")]);
        // A path that does not exist would make cargo run the build script on every build.
        let files = files.chain([workspace.join("Cargo.toml"), workspace.join("Cargo.lock")]);
        for path in files.filter(|path| path.exists()) {
            println!("cargo:rerun-if-changed={}", path.display());
        }
        println!("cargo:rerun-if-changed=build.rs");
        for name in OVERRIDES {
            println!("cargo:rerun-if-env-changed={name}");
        }
    }

    /// Builds the object and returns where it is.
    fn run_cargo(
        &self,
        toolchain: &Toolchain,
        workspace: &Path,
        out_dir: &Path,
    ) -> Result<PathBuf, BuildError> {
        let arch = env::var("CARGO_CFG_TARGET_ARCH")
            .map_err(|error| BuildError(format!("reading CARGO_CFG_TARGET_ARCH: {error}")))?;
        let target_dir = shared_target_dir(out_dir).join("ebpf").join(&arch);

        let mut cargo = toolchain.cargo();
        cargo
            // Cargo looks for its configuration from here upwards, whatever folder the user built from.
            .current_dir(workspace)
            .args(["build", "--release", "--package", self.package, "--bin", self.package])
            .args(["--target", TARGET, "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", toolchain.encoded_rustflags(&arch));
        if workspace.join("Cargo.lock").exists() {
            cargo.arg("--locked");
        }
        let output = cargo
            .stdout(Stdio::inherit())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(Child::wait_with_output)
            .map_err(|error| {
                BuildError(format!("running {}: {error}", toolchain.compiler.cargo.display()))
            })?;
        let messages = String::from_utf8_lossy(&output.stderr);
        eprint!("{messages}");
        if !output.status.success() {
            return Err(BuildError(format!(
                "building the eBPF object {} with {} and {} ended with {}; the compiler's messages are above",
                self.package,
                toolchain.compiler,
                toolchain.linker.path.display(),
                output.status,
            )));
        }
        warn(&messages);
        Ok(target_dir.join(TARGET).join("release").join(self.package))
    }
}

/// Hands the inner compiler's warnings to the outer cargo, which shows nothing else of a build script that succeeded.
/// rustc ends each message with an empty line.
fn warn(messages: &str) {
    for message in messages.split("\n\n") {
        // Cargo's own lines stand before and after: its sum of them, and what it is doing.
        let of_cargo =
            |line: &&str| line.contains(" generated ") || line.trim_start().starts_with("Finished ");
        let lines = message.lines().skip_while(|line| !line.starts_with("warning"));
        for line in lines.filter(|line| !of_cargo(line)) {
            println!("cargo:warning={line}");
        }
    }
}

/// The target directory of the build that runs the build script, so that debug and release builds, `cargo check` and
/// rust-analyzer build the object once between them. Cargo marks it with `CACHEDIR.TAG`.
fn shared_target_dir(out_dir: &Path) -> &Path {
    out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).unwrap_or(out_dir)
}

fn path_var(name: impl AsRef<OsStr>) -> Result<PathBuf, BuildError> {
    let name = name.as_ref();
    let value = env::var_os(name).map(PathBuf::from);
    value.ok_or_else(|| BuildError(format!("cargo did not set {}", name.display())))
}
