//! Versions as `rustc -vV` and LLVM print them.

use std::fmt;

/// The two numbers that decide about compatibility; a patch release changes neither rule below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl Version {
    /// Reads `1.96.0`, `1.97.0-nightly`, `22.1.8` or `22.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What `rustc -vV` says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RustcVersion {
    /// The Rust release.
    pub release: Version,
    /// The LLVM whose bitcode it writes.
    pub llvm: Version,
}

impl RustcVersion {
    /// Reads the output of `rustc -vV`.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
        Some(Self {
            release: Version::parse(field("release:")?)?,
            llvm: Version::parse(field("LLVM version:")?)?,
        })
    }
}

/// Reads what LLVM itself answers to `--version`: distributions put their name in front, and upstream puts
/// its address on a line before.
pub fn llvm_of_linker(text: &str) -> Option<Version> {
    text.lines()
        .find_map(|line| line.split_once("LLVM version "))
        .and_then(|(_, version)| Version::parse(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_is_understood() {
        let debian = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                      commit-hash: ac68faa20c58cbccd01ee7208bf3b6e93a7d7f96\nhost: x86_64-unknown-linux-gnu\n\
                      release: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(
            RustcVersion::parse(debian),
            Some(RustcVersion {
                release: Version { major: 1, minor: 96 },
                llvm: Version { major: 22, minor: 1 }
            })
        );
        let nightly = "rustc 1.97.0-nightly\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(RustcVersion::parse(nightly).map(|v| v.release.to_string()).as_deref(), Some("1.97"));
        assert_eq!(RustcVersion::parse("rustc 1.96.0\nrelease: 1.96.0\n"), None, "no LLVM named");
    }

    #[test]
    fn llvm_is_understood_with_any_vendor_in_front() {
        let expected = Some(Version { major: 22, minor: 1 });
        assert_eq!(llvm_of_linker("Debian LLVM version 22.1.8\n  Optimized build.\n"), expected);
        assert_eq!(llvm_of_linker("LLVM (http://llvm.org/):\n  LLVM version 22.1.0-rust\n"), expected);
        assert_eq!(llvm_of_linker("bpf-linker 0.13.0\n"), None);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(Version::parse("1.100.0") > Version::parse("1.95.0"));
        assert_eq!(Version::parse(""), None);
        assert_eq!(Version::parse("22"), None);
    }
}
