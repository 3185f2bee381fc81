//! The environment: what the inner cargo may inherit from the cargo that runs the build script, and the user's home.

use std::{env, path::PathBuf};

/// Whether an environment variable is passed on to the inner cargo.
///
/// The outer cargo (or `cargo clippy`, or rust-analyzer) describes its own build in the environment: its
/// rustc and wrappers, its flags, its target directory, the package that it builds. Each of these would make
/// the inner cargo build something else than the object. What describes the machine stays: where the
/// registry is, how to reach it, and the jobserver, by which both together use no more cores than allowed.
pub fn is_inherited(name: &str) -> bool {
    const MACHINE: [&str; 9] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_COLOR",
        "RUSTUP_HOME",
    ];
    // Set for build scripts, and read by cargo, rustc or build scripts of the inner build.
    const BUILD_SCRIPT: [&str; 8] = [
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "TARGET",
        "__CARGO_DEFAULT_LIB_METADATA",
    ];
    if MACHINE.iter().any(|kept| name == *kept || (kept.ends_with('_') && name.starts_with(kept))) {
        return true;
    }
    let of_cargo = name == "CARGO" || name.starts_with("CARGO_");
    let of_rust = ["RUSTC", "RUSTDOC", "RUSTUP_", "RUSTFLAGS", "CLIPPY_", "DEP_"];
    !of_cargo && !of_rust.iter().any(|prefix| name.starts_with(prefix)) && !BUILD_SCRIPT.contains(&name)
}

/// The user's home, or nothing: then nothing is looked for in it.
pub(crate) fn home() -> Option<PathBuf> {
    env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::is_inherited;

    #[test]
    fn what_describes_the_outer_build_stays_outside() {
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_FEATURE_PROGRAM",
            "CARGO_INCREMENTAL",
            "CARGO_MANIFEST_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_TARGET_DIR",
            "CARGO_UNSTABLE_BUILD_STD",
            "CLIPPY_ARGS",
            "OUT_DIR",
            "RUSTC",
            "RUSTC_LINKER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOCFLAGS",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "TARGET",
        ] {
            assert!(!is_inherited(name), "{name}");
        }
    }

    #[test]
    fn what_describes_the_machine_goes_in() {
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_CAINFO",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_MINE_INDEX",
            "HOME",
            "HTTPS_PROXY",
            "PATH",
            "RUSTUP_HOME",
            "RUST_BACKTRACE",
            "SSL_CERT_FILE",
        ] {
            assert!(is_inherited(name), "{name}");
        }
    }
}
