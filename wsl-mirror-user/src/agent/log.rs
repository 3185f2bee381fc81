//! What the agent logs: the difference between two reports, and the steps of a round.

use super::report::Report;
use crate::notes::Notes;

/// The sentences of one round.
pub fn notes(before: &Report, after: &Report, steps: &[String]) -> Notes {
    let mut notes = Notes::default();
    if !steps.is_empty() && !before.says.is_empty() {
        notes.add(format!("something has changed; done: {}", steps.join("; ")));
    }
    if after.says != before.says {
        notes.add(&after.says);
    }
    let is_new = |warning: &&String| !before.warnings.contains(warning);
    notes.extend(after.warnings.iter().filter(is_new).cloned());
    match &after.config_error {
        Some(error) if Some(error) != before.config_error.as_ref() => {
            notes.add(format!("{error}; what was said before stays in force"));
        }
        None if before.config_error.is_some() => notes.add("the configuration is valid again"),
        _ => {}
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(before: &Report, after: &Report, steps: &[&str]) -> Vec<String> {
        let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
        notes(before, after, &steps).into_iter().collect()
    }

    #[test]
    fn a_round_is_logged_once_by_what_is_new_in_it() {
        let first = Report { says: "steering".into(), ..Report::default() };
        assert_eq!(
            logged(&Report::default(), &first, &["load"]),
            ["steering"],
            "the first load is no change"
        );
        assert_eq!(logged(&first, &first, &["attach"]), ["something has changed; done: attach"]);
        let broken =
            Report { config_error: Some("bad".into()), warnings: vec!["careful".into()], ..first.clone() };
        let sentences = ["careful", "bad; what was said before stays in force"];
        assert_eq!(logged(&first, &broken, &[]), sentences);
        assert!(logged(&broken, &broken, &[]).is_empty());
        assert_eq!(logged(&broken, &first, &[]), ["the configuration is valid again"]);
    }
}
