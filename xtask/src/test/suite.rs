//! The suites of `cargo xtask test`, and what each needs.

use clap::ValueEnum;

use crate::setup::Needs;

/// A part of the tests, in the order in which a run takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Suite {
    /// Format, lints and unit tests: no root
    Host,
    /// Packets and scenarios on this kernel
    Lab,
    /// The matrix of engines: Docker and Podman of several releases
    Engines,
    /// The lab's tests that differ by kernel, on Linux 6.1 in a virtual machine
    Vm,
    /// The fuzz targets, each for a minute; a filter chooses among them
    Fuzz,
    /// Package and tarball, installed, tried and upgraded in folders of Debian's releases; and each package that set-up
    /// can unpack (150 MB)
    Dist,
}

impl Suite {
    /// A run without a suite. Fuzzing and packaging take minutes and seldom find anything.
    const DEFAULT: [Self; 4] = [Self::Host, Self::Lab, Self::Engines, Self::Vm];

    /// The suites of a run, each once.
    pub(super) fn of_run(named: &[Self], extent: Extent) -> Vec<Self> {
        let is_chosen = |suite: &Self| match (named, extent) {
            ([], Extent::Full) => true,
            ([], Extent::Usual) => Self::DEFAULT.contains(suite),
            (named, _) => named.contains(suite),
        };
        Self::value_variants().iter().copied().filter(is_chosen).collect()
    }

    /// What the command line calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Lab => "lab",
            Self::Engines => "engines",
            Self::Vm => "vm",
            Self::Fuzz => "fuzz",
            Self::Dist => "dist",
        }
    }

    /// The lab builds network namespaces and loads BPF programs.
    pub(super) fn needs_root(self) -> bool {
        matches!(self, Self::Lab | Self::Engines | Self::Dist)
    }

    /// What setup installs for the suite, beyond [`Needs::Build`].
    pub(super) fn needs(self) -> Needs {
        match self {
            Self::Host => Needs::Build,
            Self::Lab | Self::Engines | Self::Dist => Needs::Lab,
            Self::Vm => Needs::Vm,
            Self::Fuzz => Needs::Fuzz,
        }
    }
}

/// How much of its suites a run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The part that a developer waits for.
    Usual,
    /// `--all`.
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_suite_has_the_default_ones() {
        assert_eq!(Suite::of_run(&[], Extent::Usual), Suite::DEFAULT);
        assert_eq!(Suite::of_run(&[], Extent::Full), Suite::value_variants());
    }

    #[test]
    fn a_suite_is_named_as_on_the_command_line() {
        for suite in Suite::value_variants() {
            let value = suite.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(value.as_deref(), Some(suite.name()));
        }
    }

    #[test]
    fn a_suite_runs_once_and_in_its_place() {
        let named = [Suite::Vm, Suite::Host, Suite::Vm];
        assert_eq!(Suite::of_run(&named, Extent::Full), [Suite::Host, Suite::Vm]);
    }
}
