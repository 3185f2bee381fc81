//! The one list of errors: steps that go on after a failure report every failure at the end.

use anyhow::Result;

use crate::exit::{Exit, Failure, exit_of};

/// The errors so far, in order.
#[derive(Debug, Default)]
pub struct Errors(Vec<anyhow::Error>);

impl Errors {
    /// Keeps the error of a step, and gives its value if it has one.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// Adds an error.
    pub fn push(&mut self, error: anyhow::Error) {
        self.0.push(error);
    }

    /// How many steps failed.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// The first error in words, and how many more there are; for failures that are no reason to stop.
    pub fn first(&self) -> Option<String> {
        let first = self.0.first()?;
        Some(match self.len() - 1 {
            0 => format!("{first:#}"),
            others => format!("{first:#} (and {others} more like that)"),
        })
    }

    /// Fails if a step failed. A single error stands for itself; several share the first one's exit code and a headline:
    /// `failed` completes "3 things …".
    pub fn into_result(mut self, failed: &str) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => {
                let exit = exit_of(&self.0[0]);
                self.into_failure(exit, failed)
            }
        }
    }

    /// Fails with this exit code and a headline if a step failed: `failed` completes "3 things …".
    pub fn into_failure(self, exit: Exit, failed: &str) -> Result<()> {
        let texts: Vec<String> = self.0.iter().map(|error| format!("{error:#}")).collect();
        let things = match texts.len() {
            0 => return Ok(()),
            1 => "1 thing".to_owned(),
            several => format!("{several} things"),
        };
        Err(Failure::new(exit, format!("{things} {failed}: {}", texts.join("; "))))
    }
}

impl Extend<anyhow::Error> for Errors {
    fn extend<I: IntoIterator<Item = anyhow::Error>>(&mut self, errors: I) {
        self.0.extend(errors);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn errors(texts: &[&'static str]) -> Errors {
        let mut errors = Errors::default();
        errors.extend(texts.iter().map(|text| Failure::new(Exit::Busy, *text)));
        errors
    }

    #[test]
    fn one_error_stands_for_itself_and_several_are_all_named() {
        assert!(errors(&[]).into_result("failed").is_ok());
        assert_eq!(errors(&["a"]).into_result("failed").unwrap_err().to_string(), "a");
        let several = errors(&["a", "b"]).into_result("failed").unwrap_err();
        assert_eq!((several.to_string().as_str(), exit_of(&several)), ("2 things failed: a; b", Exit::Busy));
        let failure = errors(&["a"]).into_failure(Exit::Kernel, "failed").unwrap_err();
        assert_eq!((failure.to_string().as_str(), exit_of(&failure)), ("1 thing failed: a", Exit::Kernel));
    }

    #[test]
    fn a_step_that_went_well_keeps_its_value() {
        let mut errors = Errors::default();
        assert_eq!(errors.keep(Ok(1)), Some(1));
        assert_eq!(errors.len(), 0);
        assert_eq!(errors.keep::<u8>(Err(anyhow!("no"))), None);
        assert_eq!(errors.len(), 1);
    }
}
