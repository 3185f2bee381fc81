//! Builds `lab-helper` statically linked: it runs in containers that hold nothing else, and as the first
//! process of dockerd's PID namespace. Cargo cannot link one target of a package statically and the others
//! not, and the library cannot name a binary of its own package: so rustc is called here, and the result is
//! embedded. The helper needs nothing but std for exactly this reason.
//!
//! Builds the object of Windows' programs as well.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, exit},
};

use wsl_mirror_toolchain::Object;

const OBJECT: Object<'_> = Object { package: "wsl-mirror-windows", folders: &["tests/windows"] };

fn main() {
    build_helper();
    if let Err(error) = OBJECT.build(workspace()) {
        eprintln!("\nerror: {error}");
        exit(1);
    }
}

fn build_helper() {
    println!("cargo::rerun-if-changed=helper");
    println!("cargo::rerun-if-changed=src/services.rs");
    println!("cargo::rerun-if-changed=src/cgroups/remove.rs");
    println!("cargo::rerun-if-changed=build.rs");

    let variable = |name: &str| -> OsString {
        env::var_os(name).unwrap_or_else(|| panic!("cargo did not set {name} for the build script"))
    };
    let helper = PathBuf::from(variable("OUT_DIR")).join("lab-helper");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(["helper/main.rs", "--crate-name=lab_helper", "--crate-type=bin", "--edition=2024"])
        .args(["-Copt-level=3", "-Cpanic=abort", "-Cstrip=symbols", "-Ctarget-feature=+crt-static"])
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(&helper);
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building lab-helper statically: {rustc:?}: {status}"),
        Err(error) => panic!("building lab-helper statically: {rustc:?}: {error}"),
    }
}

fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}
