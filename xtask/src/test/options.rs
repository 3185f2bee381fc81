//! The command line of `cargo xtask test`.

use clap::Args;

use super::{libtest::filters, rerun::Rerun, suite::Suite};

/// Run the tests: host, lab, engines and one virtual machine, or the suites that are named
///
/// The lab needs root, for network namespaces and BPF. A failing run ends with the failures, each with the command that
/// runs it alone. Then come a table and a line of the form `N passed, N failed`. A group that broke before its tests
/// could run counts as one failure.
#[derive(Args)]
pub(crate) struct Test {
    /// What to run; without it host, lab, engines and vm
    #[arg(value_name = "SUITE")]
    pub(super) suites: Vec<Suite>,
    /// Every test of these suites; without a suite, of every suite
    ///
    /// The matrix of engines has every release of Docker and Podman then, in every way. They are Debian's packages, in
    /// folders below `XDG_CACHE_HOME` or in the one that `WSL_MIRROR_ENGINES` names; mmdebstrap makes those that are
    /// missing, some 40 seconds for each of three releases on two cores. And vm runs on 6.1 and 6.12 all tests that face
    /// the kernel. `cargo xtask vm` runs the others there, too.
    #[arg(long)]
    pub(super) all: bool,
    /// Many more rounds of what may go wrong once in a while
    #[arg(long)]
    pub(super) soak: bool,
    /// Write the matrix of engines into docs/engines.md
    #[arg(long, requires = "all", conflicts_with = "filter")]
    pub(super) write: bool,
    /// For the test binaries: a filter, `--exact`, `--nocapture`, `--ignored`
    ///
    /// With a filter, a run leaves out format and lints, and vm runs what the filter names instead of its usual tests.
    #[arg(last = true)]
    pub(super) filter: Vec<String>,
}

impl Test {
    /// The command that repeats a suite of this run.
    pub(super) fn rerun(&self, suite: &str) -> Rerun {
        let all = if self.all { " --all" } else { "" };
        let soak = if self.soak { " --soak" } else { "" };
        Rerun::tests(&format!("cargo xtask test {suite}{all}{soak}")).with(&self.filter)
    }

    pub(super) fn has_filter(&self) -> bool {
        !filters(&self.filter).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rerun_has_the_switches_of_its_run() {
        let options = |all, soak| Test { suites: Vec::new(), all, soak, write: false, filter: Vec::new() };
        assert_eq!(options(false, false).rerun("vm").group(), "cargo xtask test vm");
        assert_eq!(options(true, true).rerun("vm").one("a"), "cargo xtask test vm --all --soak -- --exact a");
    }
}
