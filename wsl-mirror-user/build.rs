//! Builds the eBPF object and hands its path to the loader as `WSL_MIRROR_OBJECT`, so that the loader can
//! embed it: `aya::include_bytes_aligned!(env!("WSL_MIRROR_OBJECT"))`.

use std::{env, path::Path, process::ExitCode};

use wsl_mirror_toolchain::{BuildError, Object};

const OBJECT: Object<'_> =
    Object { package: "wsl-mirror-ebpf", folders: &["wsl-mirror-ebpf", "wsl-mirror-ebpf/core"] };

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), BuildError> {
    let object = OBJECT.build(workspace())?;
    println!("cargo:rustc-env=WSL_MIRROR_OBJECT={}", object.display());
    Ok(())
}

fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}
