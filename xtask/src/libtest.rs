//! What test binaries print about themselves.

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

/// A test that failed, with the end of what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) test: String,
    pub(crate) lines: Vec<String>,
}

/// Of what a test says, so many lines are kept: its error stands at the end.
const KEPT: usize = 40;

/// What a run has printed so far comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) count: Count,
    pub(crate) failures: Vec<Failure>,
    /// Whether the lines that come are the words of the last of the failures.
    within: bool,
}

impl Told {
    /// Takes the next line. What a failed test said comes after all tests have run, below `---- NAME stdout ----`; a list
    /// of their names follows, below `failures:`.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(more) = Count::parse(line) {
            self.count += more;
        }
        let name = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.failures.push(Failure { test: name.to_owned(), lines: Vec::new() });
            self.within = true;
        } else if line == "failures:" {
            self.within = false;
        } else if let (true, Some(failure)) = (self.within, self.failures.last_mut()) {
            // An empty line in front of each and behind it belongs to the layout.
            if !(line.is_empty() && failure.lines.is_empty()) {
                failure.lines.push(line.to_owned());
            }
            if failure.lines.len() > KEPT {
                failure.lines.remove(0);
            }
        }
    }
}

/// Passes a test run's output on as it comes, and counts.
pub(crate) fn stream(output: impl Read, mut to: impl Write) -> std::io::Result<Told> {
    let mut output = BufReader::new(output);
    let (mut told, mut line) = (Told::default(), Vec::new());
    while output.read_until(b'\n', &mut line)? != 0 {
        // A reader that went away does not stop the tests: what they leave behind, they have to clean up.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        told.line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(told)
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
        let told =
            stream(output.as_bytes(), &mut passed_on).unwrap_or_else(|error| panic!("counting: {error}"));
        assert_eq!(passed_on, output.as_bytes());
        assert_eq!(told.count, Count { passed: 15, failed: 3, ignored: 1 });
    }

    #[test]
    fn what_failed_is_kept_with_the_end_of_its_words() {
        let mut told = Told::default();
        let output = "test a::b ... FAILED\ntest c ... ok\n\nfailures:\n\n---- a::b stdout ----\nError: no answer\n\n\
            Caused by:\n    it was late\n\n---- d stdout ----\n";
        for line in output.lines() {
            told.line(line);
        }
        for n in 0..100 {
            told.line(&n.to_string());
        }
        for line in ["", "failures:", "    a::b", "    d"] {
            told.line(line);
        }
        assert_eq!(told.failures.len(), 2);
        assert_eq!(told.failures[0].test, "a::b");
        assert_eq!(told.failures[0].lines, ["Error: no answer", "", "Caused by:", "    it was late", ""]);
        assert_eq!((told.failures[1].lines.len(), told.failures[1].lines[KEPT - 2].as_str()), (KEPT, "99"));
    }

    #[test]
    fn a_test_that_prints_words_like_these_is_not_counted() {
        assert_eq!(Count::parse("the test result: ok. 1 passed; 0 failed; 0 ignored"), None);
        assert_eq!(Count::parse("test result: ok."), None);
    }
}
