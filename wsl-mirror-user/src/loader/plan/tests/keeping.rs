//! Keeping connections on `lo`: when sockets are marked, and when the rules change.

use super::*;
use crate::loader::local_rules::{Follower, LocalRules, tests as rules};

fn with(local_rules: LocalRules, lo_mark: u32, state: State) -> State {
    let settings = state.settings.map(|settings| Settings { lo_mark, ..settings });
    State { settings, local_rules, ..state }
}

fn last_mark(steps: &[Step]) -> Option<u32> {
    steps.iter().rev().find_map(|step| match step {
        Step::WriteSettings { new, .. } => Some(new.lo_mark),
        Step::ClearLoMark(_) => Some(0),
        _ => None,
    })
}

#[test]
fn sockets_are_marked_once_the_rules_are_there() {
    for steps in [
        take_over(&with(rules::fresh(), 0, fresh()), &Config::default()).unwrap(),
        difference(&with(rules::fresh(), 0, loaded()), &Config::default()).unwrap(),
    ] {
        let marks = steps.iter().position(|step| matches!(step, Step::WriteSettings { .. })).unwrap();
        let rules: Vec<_> =
            steps.iter().enumerate().filter(|(_, step)| matches!(step, Step::ChangeLocalRules(_))).collect();
        assert_eq!(rules.len(), 3);
        assert!(rules.iter().all(|(at, _)| *at < marks), "{steps:?}");
        assert_eq!(last_mark(&steps), Some(0x40));
    }
}

#[test]
fn no_socket_is_marked_while_rules_change() {
    let before = with(rules::moved(), 0x40, loaded());
    let steps = difference(&before, &Config::default()).unwrap();
    assert!(
        matches!(
            steps[..],
            [
                Step::UsePinned,
                Step::ClearLoMark(_),
                Step::ChangeLocalRules(_),
                Step::ChangeLocalRules(_),
                Step::ChangeLocalRules(_),
                Step::ChangeLocalRules(_),
                Step::WriteSettings { .. }
            ]
        ),
        "{steps:?}"
    );
    assert_eq!(last_mark(&steps), Some(0x40));
    let gone = difference(&with(rules::unknown(), 0x40, loaded()), &Config::default()).unwrap();
    assert_eq!(last_mark(&gone), Some(0));
    assert!(matches!(gone[1], Step::ClearLoMark(_)) && gone.len() == 5, "{gone:?}");
}

#[test]
fn rules_that_are_right_are_handed_on() {
    let state = with(rules::complete(), 0x40, loaded());
    assert_eq!(difference(&state, &Config::default()).unwrap(), []);
    let steps = take_over(&state, &Config::default()).unwrap();
    let touches = |step: &Step| {
        matches!(step, Step::ChangeLocalRules(_) | Step::ClearLoMark(_) | Step::WriteSettings { .. })
    };
    assert!(!steps.iter().any(touches), "{steps:?}");
}

/// Somebody undoes our repairs: adding waits, removing does not.
#[test]
fn repairs_that_are_held_back_leave_no_poison() {
    let steps = difference(&with(rules::moved(), 0x40, loaded()), &Config::default()).unwrap();
    assert!(steps.iter().any(Step::is_repair));
    let left = without_repairs(steps);
    assert!(
        matches!(
            left[..],
            [
                Step::UsePinned,
                Step::ClearLoMark(_),
                Step::ChangeLocalRules(Change::RemoveRule(_)),
                Step::ChangeLocalRules(Change::RemoveRule(_))
            ]
        ),
        "{left:?}"
    );
}

#[test]
fn load_removes_the_rules_unless_an_agent_lives() {
    let alone = with(rules::of_load(Follower::Nobody), 0x40, loaded());
    let steps = plan(&alone, &Config::default()).unwrap();
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::ChangeLocalRules(_))).count(), 3);
    assert_eq!(last_mark(&steps), Some(0));
    let beside = with(rules::of_load(Follower::AgentBesideUs), 0x40, loaded());
    let steps = plan(&beside, &Config::default()).unwrap();
    assert!(!steps.iter().any(|step| matches!(step, Step::ChangeLocalRules(_))), "{steps:?}");
    assert_eq!(last_mark(&steps), None);
}
