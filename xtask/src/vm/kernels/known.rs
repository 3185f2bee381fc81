//! The kernels that the project knows how to make.

/// The results that the tests must have on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// Every test passes.
    Works,
    /// `load` refuses the kernel, and names what it lacks.
    Refused,
}

/// A kernel that the project knows how to make.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// What `--kernel` calls it; the image is `vmlinuz-<name>`.
    pub(super) name: &'static str,
    /// Debian's package of its sources.
    pub(super) package: &'static str,
    /// The suites that have the package, or had it.
    pub(super) suites: &'static [&'static str],
    /// With `debug.config` on top.
    pub(super) debug: bool,
    pub(super) expectation: Expectation,
    /// Runs without `--kernel` and `--all`.
    pub(super) by_default: bool,
    /// What it tests.
    pub(super) why: &'static str,
}

/// WSL has also shipped 6.6 and 5.15, which are in no Debian. The list has their neighbours on both sides.
pub(super) const KNOWN: [Known; 5] = [
    Known {
        name: "6.1",
        package: "linux-source-6.1",
        suites: &["bookworm"],
        debug: false,
        expectation: Expectation::Works,
        by_default: true,
        why: "cls_bpf instead of tcx, the verifier of 2022, no hairpin accounting (before 6.7)",
    },
    Known {
        name: "6.12",
        package: "linux-source-6.12",
        suites: &["trixie", "bookworm-backports"],
        debug: false,
        expectation: Expectation::Works,
        by_default: true,
        why: "tcx; between WSL's 6.6 and 6.18",
    },
    Known {
        name: "7.2",
        package: "linux-source-7.2",
        suites: &["sid", "forky", "trixie-backports"],
        debug: false,
        expectation: Expectation::Works,
        by_default: false,
        why: "newer than any WSL's",
    },
    Known {
        name: "5.10",
        package: "linux-source-5.10",
        suites: &["bullseye"],
        debug: false,
        expectation: Expectation::Refused,
        by_default: false,
        why: "too old: no conntrack kfuncs, no tcx; `load` has to refuse it and say so",
    },
    Known {
        name: "7.2-debug",
        package: "linux-source-7.2",
        suites: &["sid", "forky", "trixie-backports"],
        debug: true,
        expectation: Expectation::Works,
        by_default: false,
        why: "7.2 with KASAN, lockdep, RCU and sleep checks",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_s_table_has_a_line_for_every_kernel_that_has_to_work() {
        let table = include_str!("../../../../tests/scenarios/verifier/table.txt");
        for known in KNOWN.iter().filter(|known| known.expectation == Expectation::Works) {
            let version = known.package.trim_start_matches("linux-source-");
            let has_line = table.lines().any(|line| line.split_whitespace().next() == Some(version));
            assert!(has_line, "no line for {version}");
        }
    }

    #[test]
    fn names_are_unique_and_each_has_somewhere_to_come_from() {
        for (index, known) in KNOWN.iter().enumerate() {
            assert!(!known.suites.is_empty(), "{}", known.name);
            assert!(KNOWN[..index].iter().all(|other| other.name != known.name), "{} twice", known.name);
        }
    }
}
