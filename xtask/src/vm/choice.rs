//! The tests of a run in virtual machines.

use crate::table;

/// Which tests run where no filter chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    All,
    /// Those of [`DIFFERING`].
    DifferByKernel,
}

/// The kernel of the usual run: no tcx, and the oldest verifier, conntrack and BTF that the product supports.
pub(crate) const MOST_DIFFERENT: &str = "6.1";

/// Tests that a kernel may decide otherwise than the host's.
#[derive(Debug)]
pub(super) struct Differing {
    /// The lab's test binary.
    pub(super) binary: &'static str,
    /// One of its modules; none for all of its tests.
    pub(super) module: Option<&'static str>,
    /// What differs.
    why: &'static str,
}

/// The tests of the usual run. Together they take some minutes in emulation; the other tests mostly ask engines and
/// our own code, which every kernel runs alike.
pub(super) const DIFFERING: [Differing; 6] = [
    differing("packets", None, "kfuncs, and each frame's verdict by BPF_PROG_TEST_RUN"),
    differing("verifier", None, "how many instructions the verifier processes of each program"),
    differing("loader", Some("cls_bpf"), "the tc filter, which replaces tcx before 6.6"),
    differing(
        "loader",
        Some("loading"),
        "BTF, pins and links, and what `load` makes of an interface made anew",
    ),
    differing("owners", Some("hooks"), "the cgroup hooks, and the socket storage that they write"),
    differing("dataplane", Some("steering"), "conntrack's entries behind the rules of a real Docker"),
];

const fn differing(binary: &'static str, module: Option<&'static str>, why: &'static str) -> Differing {
    Differing { binary, module, why }
}

/// The usual run's tests, as a table.
pub(super) fn table() -> String {
    let rows = DIFFERING.map(|Differing { binary, module, why }| {
        let tests = module.map_or_else(|| binary.to_owned(), |module| format!("{binary} {module}"));
        [tests, why.to_owned()]
    });
    table::plain(["tests", "what differs by kernel"], &rows, 2)
}

/// The filters for a test binary of the usual run: none at all if the run leaves it out, empty for all of its tests.
pub(super) fn filters_of(binary: &str) -> Option<Vec<String>> {
    let mut rows = DIFFERING.iter().filter(|row| row.binary == binary).peekable();
    rows.peek()?;
    let filters: Option<Vec<String>> = rows.map(|row| Some(format!("{}::", row.module?))).collect();
    Some(filters.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::build::cargo;

    #[test]
    fn every_row_names_a_file_of_tests() {
        let scenarios = cargo::workspace().join("tests/scenarios");
        for Differing { binary, module, why } in &DIFFERING {
            let has_tests = |path: &Path| {
                let text = fs::read_to_string(path);
                text.unwrap_or_else(|error| panic!("{}: {error}", path.display())).contains("#[test]")
            };
            let folder = scenarios.join(binary);
            match module {
                Some(module) => assert!(has_tests(&folder.join(module).with_extension("rs")), "{module}"),
                None => assert!(
                    fs::read_dir(&folder).unwrap().any(|entry| has_tests(&entry.unwrap().path())),
                    "{} has no tests",
                    folder.display()
                ),
            }
            assert!(!why.is_empty(), "{binary}");
        }
    }

    #[test]
    fn modules_of_one_binary_are_its_filters() {
        assert_eq!(filters_of("loader"), Some(vec!["cls_bpf::".to_owned(), "loading::".to_owned()]));
        assert_eq!(filters_of("packets"), Some(Vec::new()));
        assert_eq!(filters_of("leftovers"), None);
    }
}
