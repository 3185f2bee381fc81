//! What groups of tests came to, and how it is told.

use std::{fmt, time::Duration};

use crate::{
    exit_code::ExitCode,
    libtest::{Count, Failure},
    table,
};

/// What one group came to.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    pub(crate) count: Count,
    /// Those of its tests that failed, as far as it got to say so.
    pub(crate) failures: Vec<Failure>,
    pub(crate) time: Duration,
}

impl Group {
    pub(crate) fn without_tests(name: &str, verdict: Verdict, time: Duration) -> Self {
        Self { name: name.to_owned(), verdict, count: Count::default(), failures: Vec::new(), time }
    }

    /// What the last line counts. A group that failed without a failing test (it did not compile, it was
    /// killed) is one failure, so that `0 failed` means what it says.
    fn counted(&self) -> Count {
        let broke = matches!(self.verdict, Verdict::Failed | Verdict::NotRun) && self.count.failed == 0;
        Count { failed: self.count.failed + u32::from(broke), ..self.count }
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
    /// The lab has nothing to run without a binary.
    NotRun,
    /// The toolchain lacks the component.
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

/// Prints the table of all groups.
pub(crate) fn print_table(groups: &[Group]) {
    let rows: Vec<_> = groups.iter().map(Group::row).collect();
    let heading = ["group", "result", "passed", "failed", "ignored", "time"];
    print!("\n{}", table::render(heading, &rows, 2));
}

/// Prints what failed, once more and together: above it stand the lines of hundreds that did not.
pub(crate) fn print_failures(groups: &[Group]) {
    for group in groups {
        for Failure { test, lines } in &group.failures {
            println!("\n{}: {test} failed", group.name);
            for line in lines.iter().map(|line| line.trim_end()).filter(|line| !line.is_empty()) {
                println!("  {line}");
            }
        }
    }
}

/// Prints the last line, and says it as an exit code. `arguments` are those for the test binaries.
pub(crate) fn conclude(groups: &[Group], arguments: &[String]) -> ExitCode {
    let mut sum = Count::default();
    for group in groups {
        sum += group.counted();
    }
    println!("\n{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed != 0 {
        return ExitCode::TestsFailed;
    }
    let filters: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    if !filters.is_empty() && sum.passed == 0 {
        eprintln!("xtask: no test that would run has a name like {}", filters.join(" or "));
        return ExitCode::TestsFailed;
    }
    ExitCode::Success
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(verdict: Verdict, passed: u32, failed: u32) -> Group {
        Group {
            count: Count { passed, failed, ignored: 0 },
            ..Group::without_tests("g", verdict, Duration::ZERO)
        }
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
    }

    #[test]
    fn a_filter_that_fits_no_test_is_a_failure() {
        let filter = ["--nocapture".to_owned(), "no_such_test".to_owned()];
        let nothing = [group(Verdict::Ok, 0, 0), group(Verdict::NotHere, 0, 0)];
        assert_eq!(conclude(&nothing, &filter), ExitCode::TestsFailed);
        assert_eq!(conclude(&nothing, &filter[..1]), ExitCode::Success);
        assert_eq!(conclude(&[group(Verdict::Ok, 1, 0)], &filter), ExitCode::Success);
    }
}
