//! The results of all kernels as one table.

use super::kernels::Kernel;
use crate::{
    table,
    test::{Count, Group, Verdict},
};

/// Kernels side by side, a line for each group.
pub(crate) fn matrix(kernels: &[Kernel], groups: &[Group]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in groups.iter().filter_map(|group| group.name.split_once(' ')).map(|(_, name)| name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let heading: Vec<String> =
        ["group".to_owned()].into_iter().chain(kernels.iter().map(|kernel| kernel.name.clone())).collect();
    let mut rows: Vec<Vec<String>> = names
        .into_iter()
        .map(|name| {
            let cells = kernels.iter().map(|kernel| {
                let name = format!("{} {name}", kernel.name);
                groups.iter().find(|group| group.name == name).map_or_else(|| "·".to_owned(), cell)
            });
            [name.to_owned()].into_iter().chain(cells).collect()
        })
        .collect();
    let sums = kernels.iter().map(|kernel| {
        let of_kernel = |group: &&Group| group.name.starts_with(&format!("{} ", kernel.name));
        let seconds: u64 = groups.iter().filter(of_kernel).map(|group| group.time.as_secs()).sum();
        format!("{seconds} s")
    });
    rows.push(["together".to_owned()].into_iter().chain(sums).collect());
    table::plain_rows(&heading, &rows, 1)
}

fn cell(group: &Group) -> String {
    let Count { passed, failed, .. } = group.count;
    let seconds = group.time.as_secs();
    match group.verdict {
        Verdict::Ok => format!("{passed} ok, {seconds} s"),
        _ if failed != 0 => format!("{failed} of {} FAILED, {seconds} s", passed + failed),
        _ => format!("BROKEN after {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;
    use crate::{test::Rerun, vm::kernels::Expectation};

    #[test]
    fn the_table_has_a_column_for_each_kernel_and_a_line_for_each_group() {
        let group = |name: &str, verdict, passed, failed| Group {
            count: Count { passed, failed, ignored: 0 },
            ..Group::without_tests(name, verdict, Duration::from_secs(7), Rerun::tests("cargo xtask vm"))
        };
        let kernel = |name: &str, expectation| Kernel {
            name: name.to_owned(),
            argument: name.to_owned(),
            image: PathBuf::from("/k"),
            expectation,
            debug: false,
        };
        let groups = [
            group("6.1 packets", Verdict::Ok, 5, 0),
            group("6.1 loader", Verdict::Failed, 4, 1),
            group("5.10 refusal", Verdict::Failed, 0, 0),
        ];
        let kernels = [kernel("6.1", Expectation::Works), kernel("5.10", Expectation::Refused)];
        let text = matrix(&kernels, &groups);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[0], ["group", "6.1", "5.10"]);
        assert_eq!(lines[2], ["packets", "5 ok, 7 s", "·"]);
        assert_eq!(lines[3], ["loader", "1 of 5 FAILED, 7 s", "·"]);
        assert_eq!(lines[4], ["refusal", "·", "BROKEN after 7 s"]);
    }
}
