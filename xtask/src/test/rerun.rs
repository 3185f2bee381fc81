//! The command that repeats a group, or one test of it.

use crate::vm::quoted;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rerun {
    /// The group has no tests of its own: this command repeats it.
    Command(String),
    /// This command repeats the group. With `-- --exact NAME` it runs one test.
    Tests { command: String, arguments: Vec<String> },
}

impl Rerun {
    pub(crate) fn tests(command: &str) -> Self {
        Self::Tests { command: command.to_owned(), arguments: Vec::new() }
    }

    /// The group was run with these arguments for its binaries.
    pub(crate) fn with(self, more: &[String]) -> Self {
        match self {
            Self::Tests { command, .. } => Self::Tests { command, arguments: more.to_vec() },
            command @ Self::Command(_) => command,
        }
    }

    /// The group needs this variable of the environment.
    pub(crate) fn with_variable(mut self, name: &str, value: Option<&str>) -> Self {
        let (Self::Command(command) | Self::Tests { command, .. }) = &mut self;
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            command.insert_str(0, &format!("{name}={} ", word(value)));
        }
        self
    }

    /// Repeats the group.
    pub(crate) fn group(&self) -> String {
        match self {
            Self::Command(command) => command.clone(),
            Self::Tests { command, arguments } if arguments.is_empty() => command.clone(),
            Self::Tests { command, arguments } => format!("{command} -- {}", words(arguments)),
        }
    }

    /// Runs one test of the group. `--exact`: the names of other tests may contain this one.
    pub(crate) fn one(&self, test: &str) -> String {
        match self {
            Self::Command(command) => command.clone(),
            Self::Tests { command, arguments } => {
                // Without it, the test would be ignored again.
                let ignored =
                    arguments.iter().find(|word| matches!(word.as_str(), "--ignored" | "--include-ignored"));
                let ignored = ignored.map(|flag| format!("{flag} ")).unwrap_or_default();
                format!("{command} -- {ignored}--exact {}", word(test))
            }
        }
    }
}

fn words(words: &[String]) -> String {
    words.iter().map(|text| word(text)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it back; a path of Rust's needs no quotes.
pub(crate) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text.to_owned() } else { quoted(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_documentation_test_survives_the_shell() {
        let one = Rerun::tests("cargo xtask test host").one("src/lib.rs - open (line 7)");
        assert_eq!(one, "cargo xtask test host -- --exact 'src/lib.rs - open (line 7)'");
    }

    #[test]
    fn a_variable_stands_before_the_command() {
        let rerun = |value| Rerun::tests("cargo xtask vm").with_variable("FOLDER", value);
        assert_eq!(rerun(Some("/my kernels")).group(), "FOLDER='/my kernels' cargo xtask vm");
        assert_eq!(rerun(Some("/k")).one("a"), "FOLDER=/k cargo xtask vm -- --exact a");
        assert_eq!(
            (rerun(None).group(), rerun(Some("")).group()),
            ("cargo xtask vm".into(), "cargo xtask vm".into())
        );
    }

    #[test]
    fn a_group_is_repeated_with_the_arguments_that_it_had() {
        let group = Rerun::tests("cargo xtask test lab").with(&["--nocapture".to_owned(), "a::b".to_owned()]);
        assert_eq!(group.group(), "cargo xtask test lab -- --nocapture a::b");
        assert_eq!(group.one("a::b::c"), "cargo xtask test lab -- --exact a::b::c");
        let ignored = Rerun::tests("cargo xtask test lab").with(&["--ignored".to_owned()]);
        assert_eq!(ignored.one("a"), "cargo xtask test lab -- --ignored --exact a");
    }
}
