//! The tests of a run in virtual machines.

use crate::table;

/// Which tests run where no filter chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    All,
    /// All rows of [`DIFFERING`].
    FaceTheKernel,
    /// The rows of the usual run.
    DifferByKernel,
}

/// The shortest run that takes a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Usual,
    /// `cargo xtask test vm --all`.
    Full,
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
    run: Run,
    /// What differs.
    why: &'static str,
}

/// The tests that face the kernel. Those of the usual run take some minutes in emulation. The tests in no row mostly ask
/// engines and our own code, which every kernel runs alike; `cargo xtask vm` runs them too.
pub(super) const DIFFERING: [Differing; 25] = [
    usual("packets", Some("datagrams"), "kfuncs, and what becomes of datagrams behind the program"),
    full("packets", None, "each frame's verdict by BPF_PROG_TEST_RUN"),
    usual("verifier", None, "how many instructions the verifier processes of each program"),
    usual("loader", Some("cls_bpf"), "the tc filter, which replaces tcx before 6.6"),
    full("loader", Some("loading"), "BTF, pins and links, and what `load` makes of an interface made anew"),
    full("loader", Some("upgrade"), "programs replaced in links and filters under traffic"),
    full("loader", Some("regressions"), "bugs that one kernel had shown"),
    usual("owners", Some("hooks"), "the cgroup hooks, and the socket storage that they write"),
    full("owners", None, "sockets of each kind, and their tags"),
    usual("dataplane", Some("steering"), "conntrack's entries behind the rules of a real Docker"),
    usual("linux", Some("connecting"), "connects of Linux' clients: each way to make one, and their names"),
    usual("linux", Some("datagrams"), "datagrams of Linux' clients, and the names of their answers"),
    full("linux", Some("families"), "IPv6 sockets that talk IPv4"),
    usual(
        "dataplane",
        Some("border"),
        "what tells a reply of a carried flow on egress, before 6.2 and since",
    ),
    usual(
        "dataplane",
        Some("direct::conditions"),
        "route lookups by policy rules, forwarding, and NAT of both ends",
    ),
    full("dataplane", Some("direct::flush"), "entries of direct flows that are made in mid-stream"),
    full("dataplane", Some("direct::datagrams"), "entries of datagrams that lead to another container"),
    full("dataplane", Some("one_entry"), "the entry's tuples and its status"),
    full("dataplane", Some("entries"), "which entries expire, and when the kernel collects them"),
    full("dataplane", Some("reuse"), "TCP states in conntrack when addresses come round"),
    full("dataplane", Some("flush"), "entries that conntrack picks up in mid-stream"),
    full("dataplane", Some("fragments"), "reassembly in PREROUTING, and fragments behind it"),
    full("dataplane", Some("checksums"), "the checksum helpers, super-packets and offloads"),
    full("dataplane", Some("udp_flows"), "entries of datagrams"),
    full("dataplane", Some("sizes"), "super-packets and frames beyond the linear part"),
];

const fn usual(binary: &'static str, module: Option<&'static str>, why: &'static str) -> Differing {
    Differing { binary, module, run: Run::Usual, why }
}

const fn full(binary: &'static str, module: Option<&'static str>, why: &'static str) -> Differing {
    Differing { binary, module, run: Run::Full, why }
}

fn rows(choice: Choice) -> impl Iterator<Item = &'static Differing> {
    DIFFERING.iter().filter(move |row| choice == Choice::FaceTheKernel || row.run == Run::Usual)
}

/// The chosen tests, as a table.
pub(super) fn table(choice: Choice) -> String {
    let rows: Vec<_> = rows(choice)
        .map(|Differing { binary, module, why, .. }| {
            let tests = module.map_or_else(|| (*binary).to_owned(), |module| format!("{binary} {module}"));
            [tests, (*why).to_owned()]
        })
        .collect();
    table::plain(["tests", "what differs by kernel"], &rows, 2)
}

/// The filters for a test binary: nothing if the choice leaves it out, empty for all of its tests.
pub(super) fn filters_of(choice: Choice, binary: &str) -> Option<Vec<String>> {
    let mut rows = rows(choice).filter(|row| row.binary == binary).peekable();
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
        for Differing { binary, module, why, .. } in &DIFFERING {
            let has_tests = |path: &Path| {
                let text = fs::read_to_string(path);
                text.unwrap_or_else(|error| panic!("{}: {error}", path.display())).contains("#[test]")
            };
            let folder = scenarios.join(binary);
            match module {
                Some(module) => assert!(
                    has_tests(&folder.join(module.replace("::", "/")).with_extension("rs")),
                    "{module}"
                ),
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
        let usual = |binary| filters_of(Choice::DifferByKernel, binary);
        assert_eq!(usual("loader"), Some(vec!["cls_bpf::".to_owned()]));
        assert_eq!(
            usual("dataplane"),
            Some(vec!["steering::".to_owned(), "border::".to_owned(), "direct::conditions::".to_owned()])
        );
        assert_eq!(usual("packets"), Some(vec!["datagrams::".to_owned()]));
        assert_eq!(filters_of(Choice::FaceTheKernel, "packets"), Some(Vec::new()));
        assert_eq!(usual("linux"), Some(vec!["connecting::".to_owned(), "datagrams::".to_owned()]));
        assert_eq!(filters_of(Choice::FaceTheKernel, "linux").map(|filters| filters.len()), Some(3));
        assert_eq!(usual("leftovers"), None);
        assert_eq!(filters_of(Choice::FaceTheKernel, "dataplane").map(|filters| filters.len()), Some(13));
        assert_eq!(filters_of(Choice::FaceTheKernel, "owners"), Some(Vec::new()));
        assert_eq!(filters_of(Choice::FaceTheKernel, "loader").map(|filters| filters.len()), Some(4));
    }
}
