//! Builds the eBPF object and hands its path to the loader as `WSL_MIRROR_OBJECT`, so that the loader can
//! embed it: `aya::include_bytes_aligned!(env!("WSL_MIRROR_OBJECT"))`.
//!
//! The object is built by a cargo of its own: it needs another target, the sources of `core`, another
//! linker and always optimisation, none of which cargo can say of one package of a workspace.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use wsl_mirror_toolchain::{OVERRIDES, TARGET, Toolchain};

/// The package, and its binary.
const EBPF: &str = "wsl-mirror-ebpf";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // Without the backtrace that anyhow's `Debug` adds under RUST_BACKTRACE: what is wrong is a missing
        // tool, not a line of this file.
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let manifest_dir = path_var("CARGO_MANIFEST_DIR")?;
    let workspace = manifest_dir.parent().context("the loader's folder has no parent")?;
    watch(workspace);

    let toolchain = match wsl_mirror_toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(missing) => {
            bail!(
                "the eBPF object cannot be built: {missing}\n\nRun `cargo xtask setup`, or install by hand:\n{}\n",
                missing.by_hand()
            )
        }
    };
    // Another linker or compiler makes another object.
    println!("cargo:rerun-if-changed={}", toolchain.linker.path.display());
    println!("cargo:rerun-if-changed={}", toolchain.compiler.rustc.display());

    let out_dir = path_var("OUT_DIR")?;
    let built = build(&toolchain, workspace, &out_dir)?;
    let object = out_dir.join(EBPF);
    fs::copy(&built, &object).with_context(|| {
        format!("copying the eBPF object from {} to {}", built.display(), object.display())
    })?;
    println!("cargo:rustc-env=WSL_MIRROR_OBJECT={}", object.display());
    Ok(())
}

/// Everything that the object is made of. Cargo compares these with the last run of this script; the inner
/// cargo, which would know better, is only asked after that.
fn watch(workspace: &Path) {
    let lock = workspace.join("Cargo.lock");
    let sources = workspace.join(EBPF);
    let core = sources.join("core");
    let crates = [&sources, &core].map(|folder| [folder.join("src"), folder.join("Cargo.toml")]);
    let files = [crates.as_flattened(), &[workspace.join("Cargo.toml"), lock]].concat();
    // A path that does not exist would make cargo run this script on every build.
    for path in files.iter().filter(|path| path.exists()) {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    for name in OVERRIDES {
        println!("cargo:rerun-if-env-changed={name}");
    }
}

/// Builds the object and returns where it is.
fn build(toolchain: &Toolchain, workspace: &Path, out_dir: &Path) -> Result<PathBuf> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("reading CARGO_CFG_TARGET_ARCH")?;
    let target_dir = shared_target_dir(out_dir).join("ebpf").join(&arch);

    let mut cargo = toolchain.cargo();
    cargo
        // Cargo looks for its configuration from here upwards, whatever folder the user built from.
        .current_dir(workspace)
        .args(["build", "--release", "--package", EBPF, "--bin", EBPF])
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
        .with_context(|| format!("running {}", toolchain.compiler.cargo.display()))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    eprint!("{messages}");
    let status = output.status;
    if status.success() {
        warn(&messages);
    } else {
        bail!(
            "building the eBPF object with {} and {} ended with {status}; the compiler's messages are above",
            toolchain.compiler,
            toolchain.linker.path.display()
        );
    }
    Ok(target_dir.join(TARGET).join("release").join(EBPF))
}

/// Hands the inner compiler's warnings to the outer cargo, which shows nothing else of a build script that
/// succeeded. rustc ends each message with an empty line.
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

/// The target directory of the build that runs this script, so that debug and release builds, `cargo check`
/// and rust-analyzer build the object once between them. Cargo marks it with `CACHEDIR.TAG`.
fn shared_target_dir(out_dir: &Path) -> &Path {
    out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).unwrap_or(out_dir)
}

fn path_var(name: impl AsRef<OsStr>) -> Result<PathBuf> {
    let name = name.as_ref();
    env::var_os(name).map(PathBuf::from).with_context(|| format!("cargo did not set {}", name.display()))
}
