//! Entries of `[ports]` and of `exempt` that contradict each other.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use wsl_mirror_core::abi::{Path, Policy};

use super::ports::{PolicyChoice, PortRule};
use super::problems::Problem;
use super::values::Port;
use crate::policy::PortSpec;

/// What one entry of the file says about ports, and where.
struct Statement<'a> {
    ports: &'a PortSpec,
    policy: Option<PolicyChoice>,
    path: Option<Path>,
    entry: String,
    span: Range<usize>,
}

/// Every entry that contradicts one before it, in the order of the text. `exempt` and `rules` were read from the text.
///
/// Two entries may overlap where they agree, or where one names the policy and the other the path.
pub fn find(text: &str, exempt: &[Port], rules: &[PortRule]) -> Vec<Problem> {
    let mut statements = statements(text, exempt, rules);
    statements.sort_by_key(|statement| statement.span.start);
    let contradiction = |(index, later): (usize, &Statement<'_>)| {
        let message = statements[..index].iter().find_map(|earlier| earlier.contradiction(later))?;
        Some(Problem::new(text, later.span.clone(), message, None))
    };
    statements.iter().enumerate().filter_map(contradiction).collect()
}

impl Statement<'_> {
    fn contradiction(&self, later: &Self) -> Option<String> {
        let shared = self.ports.shared_with(later.ports)?;
        let (what, first, second) = match (self.policy, later.policy, self.path, later.path) {
            (Some(first), Some(second), ..) if first != second => {
                ("policy", Policy::from(first).name(), Policy::from(second).name())
            }
            (_, _, Some(first), Some(second)) if first != second => ("path", first.name(), second.name()),
            _ => return None,
        };
        Some(format!(
            "{} says {what} \"{second}\" of port {shared}, and {} says \"{first}\"",
            later.entry, self.entry
        ))
    }
}

fn statements<'a>(text: &str, exempt: &'a [Port], rules: &'a [PortRule]) -> Vec<Statement<'a>> {
    let Ok(table) = DeTable::parse(text) else { return Vec::new() };
    let value = |key| table.get_ref().get(key).map(Spanned::get_ref);
    let mut statements = Vec::new();
    if let Some(DeValue::Array(written)) = value("exempt") {
        statements.extend(exempt.iter().zip(written.iter()).map(|(Port(ports), written)| Statement {
            ports,
            policy: Some(PolicyChoice::Pass),
            path: None,
            entry: format!("{ports} in `exempt`"),
            span: written.span(),
        }));
    }
    if let Some(DeValue::Table(ports)) = value("ports") {
        for rule in rules {
            let mut keys = ports.keys();
            let Some(key) = keys.find(|key| key.get_ref().parse().as_ref() == Ok(&rule.ports)) else {
                continue;
            };
            statements.push(Statement {
                ports: &rule.ports,
                policy: rule.choices.policy,
                path: rule.choices.path.map(Path::from),
                entry: format!("{} in `[ports]`", rule.ports),
                span: key.span(),
            });
        }
    }
    statements
}
