//! Results of groups of tests, and how a run ends.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    time::Duration,
};

use super::{
    libtest::{Count, Failure, filters},
    rerun::Rerun,
};
use crate::{exit_code::ExitCode, table};

/// The result of one group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    pub(crate) count: Count,
    /// Tests that failed, as far as the group printed them.
    pub(crate) failures: Vec<Failure>,
    pub(crate) time: Duration,
    pub(crate) rerun: Rerun,
}

impl Group {
    pub(crate) fn without_tests(name: &str, verdict: Verdict, time: Duration, rerun: Rerun) -> Self {
        Self { name: name.to_owned(), verdict, count: Count::default(), failures: Vec::new(), time, rerun }
    }

    /// A group that failed without a failing test: its tests did not compile, or something killed them.
    fn is_broken(&self) -> bool {
        matches!(self.verdict, Verdict::Failed | Verdict::NotRun) && self.count.failed == 0
    }

    /// The last line's share. A broken group is one failure, so that `0 failed` means what it says.
    fn counted(&self) -> Count {
        Count { failed: self.count.failed + u32::from(self.is_broken()), ..self.count }
    }

    /// What failed, and the command that runs it alone.
    fn failed(&self) -> Vec<(String, String)> {
        let of_test = |failure: &Failure| match &failure.test {
            Some(test) => (format!("{}: {test}", self.name), self.rerun.one(test)),
            None => (self.name.clone(), self.rerun.group()),
        };
        let mut failed: Vec<_> = self.failures.iter().map(of_test).collect();
        if failed.is_empty() && self.counted().failed != 0 {
            failed.push((self.name.clone(), self.rerun.group()));
        }
        failed
    }

    fn row(&self) -> [String; 6] {
        let Count { passed, failed, ignored } = self.count;
        let number = |n: u32| if n == 0 { "·".to_owned() } else { n.to_string() };
        let time = format!("{:.1} s", self.time.as_secs_f32());
        [self.name.clone(), self.verdict.to_string(), number(passed), number(failed), number(ignored), time]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    Failed,
    /// The release build failed, and the group needs its binary.
    NotRun,
    /// The machine lacks what the group needs, and the run goes on without it.
    NotHere,
    /// Another release of the component than ours objects.
    Findings,
}

impl Verdict {
    pub(crate) fn of(success: bool) -> Self {
        if success { Self::Ok } else { Self::Failed }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Failed => "FAILED",
            Self::NotRun => "NOT RUN",
            Self::NotHere => "not installed",
            Self::Findings => "findings",
        })
    }
}

/// Begins the output of a group.
pub(super) fn heading(name: &str) {
    println!("\n=== {name} ===");
    // Before the output of a child, which does not go through our buffer.
    let _ = std::io::stdout().flush();
}

/// Prints the end of a run, and returns its exit code: the failures with the commands that repeat them, the table of
/// groups, the closing line. `arguments` are those for the test binaries.
pub(crate) fn conclude(groups: &[Group], arguments: &[String]) -> ExitCode {
    let sum = sum(groups);
    print!(
        "{}{}\n{}\n{} passed, {} failed\n",
        words(groups),
        failures(groups),
        table(groups),
        sum.passed,
        sum.failed
    );
    if sum.failed != 0 {
        return ExitCode::TestsFailed;
    }
    let filters = filters(arguments);
    if !filters.is_empty() && sum.passed == 0 {
        eprintln!("xtask: no test that would run has a name like {}", filters.join(" or "));
        return ExitCode::TestsFailed;
    }
    ExitCode::Success
}

fn sum(groups: &[Group]) -> Count {
    let mut sum = Count::default();
    for group in groups {
        sum += group.counted();
    }
    sum
}

/// What failed tests printed, once more and together: hundreds of lines of other tests stand above.
fn words(groups: &[Group]) -> String {
    let mut text = String::new();
    for group in groups {
        for Failure { test, lines } in group.failures.iter().filter(|failure| !failure.lines.is_empty()) {
            // Writing to a String does not fail.
            let _ = match test {
                Some(test) => writeln!(text, "\n{}: {test} failed", group.name),
                None => writeln!(text, "\n{} failed", group.name),
            };
            for line in lines.iter().map(|line| line.trim_end()).filter(|line| !line.is_empty()) {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
    text
}

/// Every failure, with the command that runs just that one.
fn failures(groups: &[Group]) -> String {
    let mut failed = groups.iter().flat_map(Group::failed).peekable();
    if failed.peek().is_none() {
        return String::new();
    }
    let mut text = "\nFailed, each with the command that runs it alone:\n".to_owned();
    for (what, command) in failed {
        let _ = writeln!(text, "  {what}\n    {command}");
    }
    text
}

/// The table of all groups.
fn table(groups: &[Group]) -> String {
    let rows: Vec<_> = groups.iter().map(Group::row).collect();
    table::plain(["group", "result", "passed", "failed", "ignored", "time"], &rows, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(verdict: Verdict, passed: u32, failed: u32) -> Group {
        Group {
            count: Count { passed, failed, ignored: 0 },
            ..Group::without_tests("g", verdict, Duration::ZERO, Rerun::tests("cargo xtask test lab"))
        }
    }

    fn failure(test: &str, line: &str) -> Failure {
        Failure { test: Some(test.to_owned()), lines: vec![line.to_owned()] }
    }

    #[test]
    fn a_group_that_does_not_compile_is_a_failure() {
        assert_eq!(group(Verdict::Failed, 3, 0).counted().failed, 1);
        assert_eq!(group(Verdict::Failed, 3, 2).counted().failed, 2);
        assert_eq!(group(Verdict::NotRun, 0, 0).counted().failed, 1);
        assert_eq!(
            conclude(&[group(Verdict::Ok, 1, 0), group(Verdict::Failed, 0, 0)], &[]),
            ExitCode::TestsFailed
        );
    }

    #[test]
    fn what_is_not_installed_is_not_a_failure() {
        let groups =
            [group(Verdict::NotHere, 0, 0), group(Verdict::Findings, 0, 0), group(Verdict::Ok, 5, 0)];
        assert_eq!(conclude(&groups, &[]), ExitCode::Success);
        assert_eq!(failures(&groups), "");
    }

    #[test]
    fn a_filter_that_fits_no_test_is_a_failure() {
        let filter = ["--nocapture".to_owned(), "no_such_test".to_owned()];
        let nothing = [group(Verdict::Ok, 0, 0), group(Verdict::NotHere, 0, 0)];
        assert_eq!(conclude(&nothing, &filter), ExitCode::TestsFailed);
        assert_eq!(conclude(&nothing, &filter[..1]), ExitCode::Success);
        assert_eq!(conclude(&[group(Verdict::Ok, 1, 0)], &filter), ExitCode::Success);
    }

    #[test]
    fn every_failure_has_the_command_that_runs_it_alone() {
        let lints = Rerun::Command("cargo clippy".to_owned());
        let mut lab = group(Verdict::Failed, 3, 2);
        lab.failures = vec![failure("a::b", "Error: no answer"), failure("c", "Error: late")];
        let mut machine = group(Verdict::Failed, 0, 0);
        machine.name = "6.1 loader".to_owned();
        machine.rerun = Rerun::tests("cargo xtask vm --kernel 6.1 --test loader");
        machine.failures = vec![Failure { test: None, lines: vec!["Kernel panic".to_owned()] }];
        let groups = [
            Group::without_tests("lints", Verdict::Failed, Duration::ZERO, lints),
            group(Verdict::Ok, 1, 0),
            lab,
            machine,
        ];
        assert_eq!(
            failures(&groups),
            "\nFailed, each with the command that runs it alone:\n\
             \x20 lints\n    cargo clippy\n\
             \x20 g: a::b\n    cargo xtask test lab -- --exact a::b\n\
             \x20 g: c\n    cargo xtask test lab -- --exact c\n\
             \x20 6.1 loader\n    cargo xtask vm --kernel 6.1 --test loader\n"
        );
        assert_eq!(
            words(&groups),
            "\ng: a::b failed\n  Error: no answer\n\ng: c failed\n  Error: late\n\n6.1 loader failed\n  Kernel panic\n"
        );
    }

    #[test]
    fn a_group_without_a_failing_test_is_run_as_a_group() {
        assert_eq!(
            failures(&[group(Verdict::Failed, 2, 0)]),
            "\nFailed, each with the command that runs it alone:\n  g\n    cargo xtask test lab\n"
        );
    }
}
