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

/// Passes a test run's output on as it comes, and counts.
pub(crate) fn stream(output: impl Read, mut to: impl Write) -> std::io::Result<Count> {
    let mut output = BufReader::new(output);
    let (mut count, mut line) = (Count::default(), Vec::new());
    while output.read_until(b'\n', &mut line)? != 0 {
        // A reader that went away does not stop the tests: what they leave behind, they have to clean up.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        if let Some(result) = Count::parse(&String::from_utf8_lossy(&line)) {
            count += result;
        }
        line.clear();
    }
    Ok(count)
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
        let count =
            stream(output.as_bytes(), &mut passed_on).unwrap_or_else(|error| panic!("counting: {error}"));
        assert_eq!(passed_on, output.as_bytes());
        assert_eq!(count, Count { passed: 15, failed: 3, ignored: 1 });
    }

    #[test]
    fn a_test_that_prints_words_like_these_is_not_counted() {
        assert_eq!(Count::parse("the test result: ok. 1 passed; 0 failed; 0 ignored"), None);
        assert_eq!(Count::parse("test result: ok."), None);
    }
}
