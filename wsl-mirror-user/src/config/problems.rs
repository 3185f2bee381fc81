//! What is wrong with a configuration: every unknown key at once, each with its place and the key that was meant.

use std::fmt;
use std::ops::Range;

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of the file. serde knows them too, and tells nobody; a test compares.
pub const KEYS: [&str; 13] = [
    "interface",
    "alias",
    "source_alias",
    "mark",
    "default",
    "path",
    "linux_clients",
    "keep_on_lo",
    "owners",
    "exempt",
    "ports",
    "hook",
    "log",
];
/// The keys of an element of `owners`.
pub const OWNER_KEYS: [&str; 3] = ["name", "uid", "policy"];
/// The keys of an entry of `ports`.
pub const PORT_KEYS: [&str; 3] = ["policy", "path", "windows_never_sends"];

/// Why a text is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<Problem>);

/// One thing that is wrong. Fields of `--json`: they are added, never renamed or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where it is, in bytes.
    #[serde(skip)]
    pub span: Range<usize>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What it is.
    pub message: String,
    /// Of an unknown key: the known one that is written most alike.
    pub nearest: Option<&'static str>,
}

impl Problem {
    /// A problem at this place.
    pub fn new(text: &str, span: Range<usize>, message: String, nearest: Option<&'static str>) -> Self {
        // What is missing at the end of a text is found beyond it.
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span,
            message,
            nearest,
        }
    }

    /// What `toml` and serde found.
    pub fn found(text: &str, error: &toml::de::Error) -> Self {
        let message = error.message().replace('\n', " ");
        Self::new(text, error.span().unwrap_or(0..0), message, None)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            [only] => only.fmt(f),
            several => several.iter().try_for_each(|problem| write!(f, "\n  {problem}")),
        }
    }
}

impl std::error::Error for Invalid {}

/// Every key that means nothing, in the order of the text. One that cannot be read at all has none: serde says why.
pub fn unknown_keys(text: &str) -> Vec<Problem> {
    let Ok(table) = DeTable::parse(text) else { return Vec::new() };
    let mut found = Vec::new();
    look_at(text, table.get_ref(), &KEYS, "", &mut found);
    let owners = table.get_ref().get("owners").map(Spanned::get_ref);
    if let Some(DeValue::Array(owners)) = owners {
        for owner in owners {
            if let DeValue::Table(owner) = owner.get_ref() {
                look_at(text, owner, &OWNER_KEYS, " of an owner", &mut found);
            }
        }
    }
    if let Some(DeValue::Table(ports)) = table.get_ref().get("ports").map(Spanned::get_ref) {
        for port in ports.values() {
            if let DeValue::Table(port) = port.get_ref() {
                look_at(text, port, &PORT_KEYS, " of a port", &mut found);
            }
        }
    }
    found.sort_by_key(|problem| problem.span.start);
    found
}

fn look_at(text: &str, table: &DeTable<'_>, known: &[&'static str], of: &str, found: &mut Vec<Problem>) {
    for key in table.keys().filter(|key| !known.contains(&&**key.get_ref())) {
        let name: &str = key.get_ref();
        let nearest = nearest(name, known);
        let meant = nearest.map(|nearest| format!("; the nearest is `{nearest}`")).unwrap_or_default();
        // The name as a text of TOML's: it may have line breaks in it.
        let message = format!("there is no key {}{of}{meant}", toml::Value::from(name));
        found.push(Problem::new(text, key.span(), message, nearest));
    }
}

/// The known key that is written most alike: fewest letters to change, exchange, add or leave out.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let name = name.to_lowercase();
    known.iter().copied().min_by_key(|key| strsim::damerau_levenshtein(&name, key))
}

#[cfg(test)]
mod tests {
    use super::super::ports::Choices;
    use super::super::{Config, OwnerRule};
    use super::*;

    #[test]
    fn the_known_keys_are_those_that_serde_knows() {
        let listed = |error: toml::de::Error| {
            let message = error.message().to_owned();
            let listed = message.split("expected one of ").nth(1).map(str::to_owned);
            let listed = listed.unwrap_or_else(|| panic!("{message}"));
            listed.split(", ").map(|key| key.trim_matches('`').to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(listed(toml::from_str::<Config>("x = 1").unwrap_err()), KEYS);
        assert_eq!(listed(toml::from_str::<OwnerRule>("x = 1").unwrap_err()), OWNER_KEYS);
        assert_eq!(listed(toml::from_str::<Choices>("x = 1").unwrap_err()), PORT_KEYS);
    }

    #[test]
    fn every_unknown_key_is_named_with_place_and_nearest_key() {
        let text = "# ü\nexemt = [22]\nowners = [\n  { nmae = \"ü\", name = \"a\", policy = \"pass\", uuid = 1 },\n]\n\
                    [Hook]\nx = 1\n";
        let found: Vec<_> =
            unknown_keys(text).into_iter().map(|found| (found.line, found.column, found.nearest)).collect();
        let expected =
            [(2, 1, Some("exempt")), (4, 5, Some("name")), (4, 46, Some("uid")), (6, 2, Some("hook"))];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_array_of_tables_is_looked_into_too() {
        let found = unknown_keys("[[owners]]\nname = \"a\"\npolicy = \"pass\"\nuser = 0\n");
        assert_eq!(found.iter().map(|found| (found.line, found.column)).collect::<Vec<_>>(), [(4, 1)]);
    }

    #[test]
    fn unknown_keys_of_ports_are_named_with_their_place() {
        let text =
            "[ports]\n8080 = { polcy = \"pass\" }\n[ports.\"90-99/udp\"]\npath = \"auto\"\n paths = 1\n";
        let found: Vec<_> =
            unknown_keys(text).into_iter().map(|found| (found.line, found.column, found.nearest)).collect();
        assert_eq!(found, [(2, 10, Some("policy")), (5, 2, Some("path"))]);
    }

    #[test]
    fn keys_are_known_by_what_was_meant() {
        for (typed, meant) in [
            ("exempts", "exempt"),
            ("Interface", "interface"),
            ("intreface", "interface"),
            ("owner", "owners"),
            ("logs", "log"),
            ("marks", "mark"),
            ("source-alias", "source_alias"),
            ("port", "ports"),
        ] {
            assert_eq!(nearest(typed, &KEYS), Some(meant), "{typed}");
        }
    }
}
