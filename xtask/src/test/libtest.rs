//! The output of test binaries.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    ops::AddAssign,
};

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl Count {
    /// Reads `test result: ok. 13 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`,
    /// which libtest prints once for each test binary and for each crate's documentation tests.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let number = |word: &str| {
            numbers.split(';').find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        };
        Some(Self { passed: number("passed")?, failed: number("failed")?, ignored: number("ignored")? })
    }
}

/// A failure, with the end of its output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The test; none where something else of the group failed, such as its machine.
    pub(crate) test: Option<String>,
    pub(crate) lines: Vec<String>,
}

/// How many lines of a test's output are kept. Its error stands at the end.
const KEPT: usize = 40;

/// The results in a run's output so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Results {
    pub(crate) count: Count,
    pub(crate) failures: Vec<Failure>,
    /// How many of the failures earlier binaries of this run had.
    earlier: usize,
    part: Part,
}

/// The part of a binary's output that the next line belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Tests,
    /// The output of the last of the failures.
    Output,
    /// The names of all that failed.
    Names,
}

impl Results {
    /// Takes the next line. After all tests of a binary comes the output of those that failed, each below
    /// `---- NAME stdout ----`. Their names follow, below `failures:`; a test without output is only there.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(more) = Count::parse(line) {
            self.count += more;
            self.earlier = self.failures.len();
            self.part = Part::Tests;
            return;
        }
        let name = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.failures.push(Failure { test: Some(name.to_owned()), lines: Vec::new() });
            self.part = Part::Output;
        } else if line == "failures:" {
            self.part = Part::Names;
        } else if self.part == Part::Names {
            self.name(line);
        } else if let (Part::Output, Some(failure)) = (self.part, self.failures.last_mut()) {
            // An empty line in front of each and behind it belongs to the layout.
            if !(line.is_empty() && failure.lines.is_empty()) {
                failure.lines.push(line.to_owned());
            }
            if failure.lines.len() > KEPT {
                failure.lines.remove(0);
            }
        }
    }

    fn name(&mut self, line: &str) {
        let Some(name) = line.strip_prefix("    ") else { return };
        let of_this_binary = &self.failures[self.earlier..];
        if !of_this_binary.iter().any(|failure| failure.test.as_deref() == Some(name)) {
            self.failures.push(Failure { test: Some(name.to_owned()), lines: Vec::new() });
        }
    }
}

/// Options of libtest whose value may be the next word.
const WITH_VALUE: [&str; 7] =
    ["--skip", "--test-threads", "--format", "--color", "--logfile", "--shuffle-seed", "-Z"];

/// The words among a binary's arguments that choose tests by name.
pub(crate) fn filters(arguments: &[String]) -> Vec<&str> {
    let mut filters = Vec::new();
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&word) {
            words.next();
        } else if !word.starts_with('-') {
            filters.push(word);
        }
    }
    filters
}

/// Passes a test run's output on as it comes, and counts.
pub(crate) fn stream(output: impl Read, mut to: impl Write) -> std::io::Result<Results> {
    let mut output = BufReader::new(output);
    let (mut results, mut line) = (Results::default(), Vec::new());
    while output.read_until(b'\n', &mut line)? != 0 {
        // A reader that went away does not stop the tests, which have to clean up after themselves.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        results.line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_are_summed() {
        let output = "running 3 tests\ntest a ... ok\n\
            test result: ok. 13 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            \n\
            test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.20s\n";
        let mut passed_on = Vec::new();
        let results =
            stream(output.as_bytes(), &mut passed_on).unwrap_or_else(|error| panic!("counting: {error}"));
        assert_eq!(passed_on, output.as_bytes());
        assert_eq!(results.count, Count { passed: 15, failed: 3, ignored: 1 });
    }

    #[test]
    fn a_failure_keeps_the_end_of_its_output() {
        let mut results = Results::default();
        let output = "test a::b ... FAILED\ntest c ... ok\n\nfailures:\n\n---- a::b stdout ----\nError: no answer\n\n\
            Caused by:\n    it was late\n\n---- d stdout ----\n";
        for line in output.lines() {
            results.line(line);
        }
        for n in 0..100 {
            results.line(&n.to_string());
        }
        for line in ["", "failures:", "    a::b", "    d"] {
            results.line(line);
        }
        let [first, second] = results.failures.as_slice() else { panic!("{:?}", results.failures) };
        assert_eq!(first.test.as_deref(), Some("a::b"));
        assert_eq!(first.lines, ["Error: no answer", "", "Caused by:", "    it was late", ""]);
        assert_eq!((second.lines.len(), second.lines[KEPT - 2].as_str()), (KEPT, "99"));
    }

    #[test]
    fn a_failure_without_output_has_its_name() {
        let mut results = Results::default();
        let binary = "failures:\n\nfailures:\n    a::b\n\n\
            test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n    no name\n";
        for line in binary.lines().chain(binary.lines()) {
            results.line(line);
        }
        let names: Vec<_> = results.failures.iter().map(|failure| failure.test.as_deref()).collect();
        assert_eq!(names, [Some("a::b"), Some("a::b")], "one of each binary");
    }

    #[test]
    fn the_value_of_an_option_is_no_filter() {
        let of = |line: &str| {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            filters(&words).join(" ")
        };
        assert_eq!(of("--test-threads 1 --skip x --format terse --color never --logfile f"), "");
        assert_eq!(of("--test-threads=1 a --nocapture b --skip x"), "a b");
        assert_eq!(of("a --skip"), "a");
    }

    #[test]
    fn a_test_that_prints_words_like_these_is_not_counted() {
        assert_eq!(Count::parse("the test result: ok. 1 passed; 0 failed; 0 ignored"), None);
        assert_eq!(Count::parse("test result: ok."), None);
    }
}
