use super::*;
use crate::loader::source_alias::{self, SourceAlias};

fn with(source_alias: SourceAlias, state: State) -> State {
    State { source_alias, ..state }
}

#[test]
fn routing_changes_before_programs_know_the_source_alias() {
    let steps = plan(&with(source_alias::tests::fresh(), fresh()), &Config::default()).unwrap();
    let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
    let last = steps.iter().rposition(|step| matches!(step, Step::ChangeRouting(_))).unwrap();
    assert!(
        at(&|step| matches!(step, Step::LoadProgram { .. }))
            < at(&|step| matches!(step, Step::ChangeRouting(_)))
    );
    assert!(last < at(&|step| matches!(step, Step::WriteSettings { .. })), "{steps:?}");
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::ChangeRouting(_))).count(), 4);
}

#[test]
fn a_missing_route_is_a_repair_of_its_own() {
    let state = with(source_alias::tests::without_route(), loaded());
    let steps = difference(&state, &Config::default()).unwrap();
    assert!(
        matches!(steps[..], [Step::UsePinned, Step::ChangeRouting(_)]) && steps[1].is_repair(),
        "{steps:?}"
    );
    assert_eq!(without_repairs(steps), []);
    let complete = with(source_alias::tests::complete(), loaded());
    assert_eq!(difference(&complete, &Config::default()).unwrap(), []);
}

#[test]
fn load_refuses_a_used_source_alias_and_the_agent_gives_it_up() {
    for state in [fresh(), loaded()] {
        let state = with(source_alias::tests::used(), state);
        let error = plan(&state, &Config::default()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Config);
        let text = error.to_string();
        assert!(text.contains("source_alias = \"192.0.0.8\"") && text.contains("192.0.0.0/24"), "{text}");
        for steps in [take_over(&state, &Config::default()), difference(&state, &Config::default())] {
            let steps = steps.unwrap();
            let changes = steps.iter().filter(|step| matches!(step, Step::ChangeRouting(_)));
            assert!(changes.clone().all(|step| step.to_string().starts_with("remove the ")), "{steps:?}");
            assert_eq!(changes.count(), 4);
        }
    }
}
