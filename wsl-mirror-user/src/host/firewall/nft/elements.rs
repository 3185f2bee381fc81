//! Named sets and maps of a ruleset, and how deep its expressions may be.

use std::collections::HashMap;

use serde_json::Value;

/// How deep an expression may be; nft's own are a handful.
pub const DEEPEST: usize = 32;

/// The elements of named sets and maps.
#[derive(Default)]
pub struct Elements<'a>(pub HashMap<(String, String), &'a [Value]>);

impl<'a> Elements<'a> {
    pub fn of(&self, table: &str, name: &str) -> &'a [Value] {
        self.0.get(&(table.to_owned(), name.to_owned())).copied().unwrap_or_default()
    }

    /// What a right-hand side stands for: itself, or each element of a set.
    pub fn all<'v>(&self, table: &str, value: &'v Value) -> Vec<&'v Value>
    where
        'a: 'v,
    {
        self.entries(table, value).into_iter().map(without_details).collect()
    }

    /// The same, with what else there is to an element.
    pub fn entries<'v>(&self, table: &str, value: &'v Value) -> Vec<&'v Value>
    where
        'a: 'v,
    {
        match value.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.of(table, name).iter().collect(),
            None => match value.get("set").and_then(Value::as_array) {
                Some(set) => set.iter().collect(),
                None => vec![value],
            },
        }
    }
}

/// An element may come with a timeout, a comment or a counter.
pub fn without_details(value: &Value) -> &Value {
    value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value)
}
