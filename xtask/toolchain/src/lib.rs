//! Finds the toolchain that can build for `bpfel-unknown-none`: a cargo and rustc that have the sources of
//! `core` (no prebuilt `core` exists for that target) and a `bpf-linker` that can read what this rustc writes.
//!
//! The build scripts of the loader and of the lab build their objects here ([`Object`]), and `cargo xtask setup` asks
//! here, so that all mean the same toolchain. Only the standard library is used: whatever this crate depended on would
//! be built before every build.
//!
//! Reading the machine ([`Machine::read`]) and choosing from what was read ([`choose`]) are apart, so that
//! the choice can be tested with machines that are not this one.

mod candidates;
mod compiler;
mod environment;
mod linker;
mod object;
mod version;

use std::{ffi::OsString, fmt, process::Command};

use candidates::Candidates;
pub use candidates::Rejected;
pub use compiler::{CARGO_OVERRIDE, Compiler, oldest};
pub use environment::is_inherited;
pub use linker::{LINKER_OVERRIDE, LINKER_RELEASE, Linker, tools_dir};
pub use object::{BuildError, Object};
pub use version::{RustcVersion, Version, llvm_of_linker};

/// The target that the object is built for.
pub const TARGET: &str = "bpfel-unknown-none";

/// Environment variables that change what [`find`] answers; a build script has to watch them.
pub const OVERRIDES: [&str; 2] = [CARGO_OVERRIDE, LINKER_OVERRIDE];

/// The toolchain for the machine that this runs on.
///
/// # Errors
/// [`Missing`] says what is not there, and prints what to install.
pub fn find() -> Result<Toolchain, Missing> {
    choose(Machine::read())
}

/// A compiler and a linker that go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler, its cargo and its sources of `core`.
    pub compiler: Compiler,
    /// The linker that reads the compiler's bitcode.
    pub linker: Linker,
}

impl Toolchain {
    /// A command that runs the inner cargo (see [`Compiler::cargo_command`]), with `-Z build-std` allowed on a
    /// toolchain that is not nightly.
    pub fn cargo(&self) -> Command {
        let mut command = self.compiler.cargo_command();
        command.env("RUSTC_BOOTSTRAP", "1");
        command
    }

    /// The flags that the object needs from rustc, as cargo takes them in `CARGO_ENCODED_RUSTFLAGS`.
    ///
    /// `host_arch` is the architecture of the machine that the object will be loaded on, in Rust's words
    /// (`x86_64`, `aarch64`): aya-ebpf chooses the layout of kernel structs by it.
    ///
    /// They are given here and not in a profile because a profile does not reach `core`, whose types the
    /// BTF names too, and because an explicit `-Clinker` does not depend on `PATH`.
    pub fn encoded_rustflags(&self, host_arch: &str) -> OsString {
        let mut linker = OsString::from("-Clinker=");
        linker.push(&self.linker.path);
        let mut flags = OsString::from(format!("--cfg=bpf_target_arch=\"{host_arch}\""));
        for flag in ["-Cdebuginfo=2".into(), "-Clink-arg=--btf".into(), linker] {
            flags.push("\x1f");
            flags.push(flag);
        }
        flags
    }
}

/// What a look at the machine found, before anything is chosen.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Compilers that could be asked, best first.
    pub compilers: Vec<Compiler>,
    /// Compilers that were looked at and cannot be used.
    pub rejected_compilers: Vec<Rejected>,
    /// Linkers that could be asked, in the order of the search path.
    pub linkers: Vec<Linker>,
    /// Linkers that were looked at and cannot be used.
    pub rejected_linkers: Vec<Rejected>,
}

impl Machine {
    /// Looks at the places named in the module documentation. Only compilers with sources of `core` are
    /// run, so that this takes milliseconds on a machine with many toolchains.
    pub fn read() -> Self {
        let Candidates { usable: compilers, rejected: rejected_compilers } = compiler::read();
        let Candidates { usable: linkers, rejected: rejected_linkers } = linker::read();
        Self { compilers, rejected_compilers, linkers, rejected_linkers }
    }
}

/// The first compiler, in order of preference, for which there is a linker.
///
/// # Errors
/// [`Missing`] keeps the best compiler, when there is one: then a linker for its LLVM is all that is needed.
pub fn choose(machine: Machine) -> Result<Toolchain, Missing> {
    for compiler in &machine.compilers {
        if let Some(linker) = machine.linkers.iter().find(|linker| linker.reads(compiler)) {
            return Ok(Toolchain { compiler: compiler.clone(), linker: linker.clone() });
        }
    }
    let Machine { compilers, rejected_compilers, linkers, mut rejected_linkers } = machine;
    let compiler = compilers.into_iter().next();
    if let Some(compiler) = &compiler {
        rejected_linkers.extend(linkers.into_iter().map(|linker| linker.too_old_for(compiler)));
    }
    Err(Missing { compiler, rejected_compilers, rejected_linkers })
}

/// Why the object cannot be built here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The compiler that a linker is missing for; `None` when the compiler itself is missing.
    pub compiler: Option<Compiler>,
    /// Compilers that were looked at, and why each was not taken.
    pub rejected_compilers: Vec<Rejected>,
    /// Linkers that were looked at, and why each was not taken.
    pub rejected_linkers: Vec<Rejected>,
}

impl Missing {
    /// What to type on a machine where `cargo xtask setup` cannot install it.
    pub fn by_hand(&self) -> String {
        let linker =
            "https://github.com/aya-rs/bpf-linker/releases (a binary), or `cargo binstall bpf-linker`";
        match &self.compiler {
            None => format!(
                "  with rustup:     rustup toolchain install nightly --component rust-src\n  \
                   on Debian:       apt-get install rustc-web cargo-web rust-web-src (12 and 13, security updates)\n  \
                   and bpf-linker:  {linker}"
            ),
            Some(compiler) => format!(
                "  bpf-linker with LLVM {} or newer, on PATH or named by {LINKER_OVERRIDE}:\n    {linker}\n  \
                   or, with llvm-{}-dev installed:\n    {}",
                compiler.llvm.major,
                compiler.llvm.major,
                linker::install_command(compiler.llvm.major),
            ),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.compiler {
            None => {
                write!(f, "no Rust toolchain with the sources of `core` (rust-src), which {TARGET} needs")?;
                for Rejected { path, reason } in &self.rejected_compilers {
                    write!(f, "\n  {}: it {reason}", path.display())?;
                }
            }
            Some(compiler) => {
                write!(f, "no bpf-linker with LLVM {} or newer, as {compiler} needs", compiler.llvm.major)?;
                for Rejected { path, reason } in &self.rejected_linkers {
                    write!(f, "\n  {}: it {reason}", path.display())?;
                }
            }
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn compiler(name: &str, llvm: u32) -> Compiler {
        let bin = PathBuf::from(format!("/toolchains/{name}/bin"));
        Compiler {
            cargo: bin.join("cargo"),
            rustc: bin.join("rustc"),
            release: Version { major: 1, minor: 96 },
            llvm: Version { major: llvm, minor: 1 },
        }
    }

    fn linker(path: &str, llvm: Option<u32>) -> Linker {
        Linker { path: path.into(), llvm: llvm.map(|major| Version { major, minor: 1 }) }
    }

    #[test]
    fn the_first_compiler_with_a_linker_is_chosen() {
        let machine = Machine {
            compilers: vec![compiler("nightly", 23), compiler("stable", 22)],
            linkers: vec![linker("/old/bpf-linker", Some(21)), linker("/ours/bpf-linker", Some(22))],
            ..Machine::default()
        };
        let toolchain = choose(machine).unwrap_or_else(|missing| panic!("{missing}"));
        assert_eq!(toolchain.compiler, compiler("stable", 22));
        assert_eq!(toolchain.linker.path, PathBuf::from("/ours/bpf-linker"));
    }

    #[test]
    fn a_newer_linker_reads_older_bitcode() {
        let machine = Machine {
            compilers: vec![compiler("stable", 22)],
            linkers: vec![linker("/bpf-linker", Some(23))],
            ..Machine::default()
        };
        assert!(choose(machine).is_ok());
    }

    #[test]
    fn a_linker_named_by_the_user_is_taken_at_their_word() {
        let machine = Machine {
            compilers: vec![compiler("stable", 22)],
            linkers: vec![linker("/mine", None)],
            ..Machine::default()
        };
        assert!(choose(machine).is_ok());
    }

    #[test]
    fn a_linker_that_is_too_old_is_named_with_both_versions() {
        let machine = Machine {
            compilers: vec![compiler("stable", 22)],
            linkers: vec![linker("/old/bpf-linker", Some(21))],
            ..Machine::default()
        };
        let Err(missing) = choose(machine) else { panic!("LLVM 21 cannot read what 22 wrote") };
        let text = missing.to_string();
        assert!(
            text.contains("/old/bpf-linker: it has LLVM 21.1, and rustc 1.96 writes LLVM 22.1"),
            "{text}"
        );
        assert!(missing.by_hand().contains("llvm-22"), "{}", missing.by_hand());
    }

    #[test]
    fn without_a_compiler_the_compiler_is_what_is_missing() {
        let machine = Machine { linkers: vec![linker("/bpf-linker", Some(22))], ..Machine::default() };
        let Err(missing) = choose(machine) else { panic!("there is no compiler") };
        assert_eq!(missing.compiler, None);
        assert!(missing.by_hand().contains("rust-src"));
    }

    #[test]
    fn the_flags_name_the_linker_and_the_architecture() {
        let toolchain =
            Toolchain { compiler: compiler("stable", 22), linker: linker("/a b/bpf-linker", Some(22)) };
        let flags = toolchain.encoded_rustflags("aarch64").to_string_lossy().into_owned();
        assert_eq!(
            flags.split('\x1f').collect::<Vec<_>>(),
            [
                "--cfg=bpf_target_arch=\"aarch64\"",
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
                "-Clinker=/a b/bpf-linker"
            ]
        );
    }
}
