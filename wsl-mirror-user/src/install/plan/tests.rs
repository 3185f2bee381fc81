use super::*;
use crate::exit::exit_of;

const US: &str = "/usr/local/sbin/wsl-mirror";

/// A distribution with systemd, in mirrored mode.
fn state() -> State {
    State {
        mode: NetworkingMode::Mirrored,
        systemd_runs: true,
        is_running: true,
        wsl_conf: Some("[boot]\nsystemd=true\n".to_owned()),
        wsl_conf_link: None,
        binary: US.into(),
        objection: None,
        unit: None,
        masked: false,
        packaged: None,
        boot_link: None,
        agent: None,
    }
}

fn without_systemd() -> State {
    let wsl_conf = Some("[boot]\ncommand = service docker start\n".to_owned());
    State { systemd_runs: false, wsl_conf, ..state() }
}

/// What the distribution has when it is done.
fn after(mut state: State, plan: &Plan) -> State {
    for step in &plan.steps {
        match step {
            Step::File { path: unit::PATH, after, .. } => state.unit.clone_from(after),
            Step::File { after, .. } => state.wsl_conf.clone_from(after),
            Step::Enable { unit } => state.boot_link = Some(unit.clone()),
            Step::Disable => state.boot_link = None,
            Step::End { .. } => state.agent = None,
            Step::Systemctl(_) | Step::Restart { .. } => {}
        }
    }
    state
}

fn names(plan: &Plan) -> Vec<String> {
    let name = |step: &Step| match step {
        Step::File { path, after, .. } => {
            format!("{} {path}", if after.is_some() { "write" } else { "remove" })
        }
        other => other.to_string(),
    };
    plan.steps.iter().map(name).collect()
}

#[test]
fn systemd_starts_a_unit() {
    let plan = install(&state()).unwrap();
    let expected = [
        "write /etc/systemd/system/wsl-mirror.service",
        "link /etc/systemd/system/multi-user.target.wants/wsl-mirror.service -> \
         /etc/systemd/system/wsl-mirror.service",
        "systemctl daemon-reload",
        "systemctl restart --no-block wsl-mirror.service",
    ];
    assert_eq!(names(&plan), expected);
    assert_eq!(plan.notes, Vec::<String>::new());
}

#[test]
fn the_boot_command_starts_it_without_systemd() {
    let plan = install(&without_systemd()).unwrap();
    let [step] = &*plan.steps else { panic!("{plan:?}") };
    let shown = step.to_string();
    assert!(shown.starts_with("--- /etc/wsl.conf\n+++ /etc/wsl.conf\n@@"), "{shown}");
    assert!(
        shown.contains("\n-command = service docker start\n+command = (/usr/local/sbin/wsl-mirror mode && ")
    );
    assert!(shown.ends_with("& service docker start"), "{shown}");
    assert!(plan.notes.iter().any(|note| note.contains("wsl --shutdown")), "{plan:?}");
}

#[test]
fn the_init_of_the_next_boot_counts() {
    let to_come = State { wsl_conf: Some("[boot]\nsystemd=true\n".to_owned()), ..without_systemd() };
    assert_eq!(names(&install(&to_come).unwrap()).len(), 2, "a unit, and nobody is told");
    let to_go = State { wsl_conf: Some("[boot]\nsystemd=false\n".to_owned()), ..state() };
    assert_eq!(names(&install(&to_go).unwrap()), ["write /etc/wsl.conf"]);
    let unsaid = State { wsl_conf: None, ..state() };
    assert_eq!(names(&install(&unsaid).unwrap()).len(), 4);
}

#[test]
fn a_second_install_changes_nothing_and_uninstall_undoes_it() {
    for before in [state(), without_systemd(), State { wsl_conf: None, ..without_systemd() }] {
        let installed = after(before.clone(), &install(&before).unwrap());
        assert_eq!(install(&installed).unwrap().steps, []);
        let uninstalled = after(installed.clone(), &uninstall(&installed, Caller::User));
        assert_eq!(uninstalled, before);
        assert_eq!(uninstall(&uninstalled, Caller::User).steps, []);
    }
}

#[test]
fn a_changed_init_gets_the_other_way_and_never_both() {
    let with = after(state(), &install(&state()).unwrap());
    let changed = State { systemd_runs: false, wsl_conf: Some("[boot]\nsystemd=false\n".to_owned()), ..with };
    let other = after(changed.clone(), &install(&changed).unwrap());
    assert_eq!((&other.unit, &other.boot_link), (&None, &None));
    assert!(other.wsl_conf.as_ref().unwrap().contains(US));
    let back = State {
        systemd_runs: true,
        wsl_conf: Some(other.wsl_conf.unwrap().replace("false", "true")),
        ..other
    };
    let back = after(back.clone(), &install(&back).unwrap());
    assert!(back.unit.is_some() && back.boot_link.is_some());
    assert_eq!(back.wsl_conf.unwrap(), "[boot]\nsystemd=true\n");
}

#[test]
fn a_packages_unit_is_only_switched_on() {
    let packaged = (unit::PACKAGED[1], unit::TEXT.to_owned());
    let state = State { binary: unit::PACKAGED_BINARY.into(), packaged: Some(packaged), ..state() };
    let plan = install(&state).unwrap();
    assert_eq!(plan.steps[0], Step::Enable { unit: unit::PACKAGED[1].into() });
    // A program elsewhere takes precedence, as units do.
    let other = State { binary: US.into(), ..state };
    assert_eq!(names(&install(&other).unwrap())[0], "write /etc/systemd/system/wsl-mirror.service");
}

#[test]
fn a_folder_has_no_systemd_to_tell() {
    let plan = install(&State { is_running: false, ..state() }).unwrap();
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::Systemctl(_))), "{plan:?}");
}

#[test]
fn another_networking_mode_is_noted_and_installed_for() {
    let plan = install(&State { mode: NetworkingMode::Nat, ..state() }).unwrap();
    assert!(plan.notes[0].contains("nat") && plan.notes[0].contains("networkingMode=mirrored"), "{plan:?}");
    assert_eq!(plan.steps.len(), 4);
}

#[test]
fn a_file_that_is_not_understood_is_refused() {
    let refusals = [
        (State { mode: NetworkingMode::NotWsl, ..state() }, Exit::NotWsl, "not WSL"),
        (State { wsl_conf: Some("[boot\n".into()), ..state() }, Exit::NotUnderstood, "line 1"),
        (
            State { unit: Some("[Service]\nExecStart=/bin/true\n".into()), ..state() },
            Exit::NotUnderstood,
            "systemctl edit",
        ),
        (
            State { objection: Some("/home/me belongs to user 1000".into()), ..state() },
            Exit::NotUnderstood,
            "sudo install",
        ),
        (State { binary: "/opt/a b/wsl-mirror".into(), ..state() }, Exit::NotUnderstood, "letters"),
        (State { binary: "/opt/other".into(), ..state() }, Exit::NotUnderstood, "another name"),
    ];
    for (state, exit, word) in refusals {
        let error = install(&state).unwrap_err();
        assert_eq!(exit_of(&error), exit, "{error:#}");
        assert!(error.to_string().contains(word), "{error:#}");
    }
}

#[test]
fn uninstall_leaves_somebody_elses_unit_alone_and_what_starts_it() {
    for text in ["[Service]\nExecStart=/bin/true\n", "[Service]\nExecStart=/usr/local/sbin/wsl-mirror run\n"]
    {
        let theirs = State { unit: Some(text.into()), boot_link: Some(unit::PATH.into()), ..state() };
        assert_eq!(uninstall(&theirs, Caller::User).steps, [], "{text}");
        let error = install(&theirs).unwrap_err();
        assert_eq!(exit_of(&error), Exit::NotUnderstood, "{error:#}");
    }
}

#[test]
fn an_edited_unit_of_ours_is_still_ours() {
    let ours = unit::text(US);
    assert!(is_ours(&ours));
    let without = |start: &str| -> String {
        ours.lines()
            .filter(|line| !line.starts_with(start))
            .fold(String::new(), |text, line| text + line + "\n")
    };
    assert!(is_ours(&without("# What packages")) && is_ours(&without("Documentation=")));
    assert!(!is_ours(&without("ExecStart=")));
}

#[test]
fn a_masked_unit_stays_masked() {
    // As a package leaves it that was removed, but not purged.
    let masked = |state: State| State { masked: true, boot_link: Some(unit::PACKAGED[1].into()), ..state };
    let error = install(&masked(state())).unwrap_err();
    assert_eq!(exit_of(&error), Exit::NotUnderstood);
    assert!(error.to_string().contains("systemctl unmask wsl-mirror.service"), "{error:#}");
    assert_eq!(uninstall(&masked(state()), Caller::User).steps, []);
    let before = masked(without_systemd());
    let installed = after(before.clone(), &install(&before).unwrap());
    assert!(installed.wsl_conf.as_ref().unwrap().contains(US));
    assert_eq!(after(installed.clone(), &uninstall(&installed, Caller::User)), before);
}

#[test]
fn a_removed_package_keeps_its_own_link() {
    let packaged = State {
        packaged: Some((unit::PACKAGED[0], unit::TEXT.to_owned())),
        boot_link: Some(unit::PACKAGED[1].into()),
        ..state()
    };
    assert_eq!(uninstall(&packaged, Caller::Package).steps, []);
    assert_eq!(names(&uninstall(&packaged, Caller::User))[0], format!("remove {}", unit::BOOT_LINK));
    // What `install` has written goes in any case.
    let installed = after(state(), &install(&state()).unwrap());
    assert_eq!(uninstall(&installed, Caller::Package).steps, uninstall(&installed, Caller::User).steps);
}

#[test]
fn files_change_before_systemd_is_told() {
    let conf = wsl_conf::with_ours(Some("[boot]\nsystemd=true\n"), US).unwrap();
    let both = State { wsl_conf: Some(conf), ..after(state(), &install(&state()).unwrap()) };
    let other_way = State { wsl_conf: Some("[boot]\nsystemd=false\n".into()), ..both.clone() };
    let fresh = State { unit: None, boot_link: None, ..both.clone() };
    for plan in [uninstall(&both, Caller::User), install(&other_way).unwrap(), install(&fresh).unwrap()] {
        assert!(plan.steps.is_sorted_by_key(Step::is_about_now), "{:?}", names(&plan));
        assert!(names(&plan).iter().any(|name| name.ends_with(WSL_CONF)), "{:?}", names(&plan));
    }
    let expected = ["stop wsl-mirror.service", "daemon-reload"].map(|verb| format!("systemctl {verb}"));
    assert_eq!(names(&uninstall(&both, Caller::User))[3..], expected);
}

#[test]
fn a_bad_wsl_conf_without_ours_does_not_stop_uninstall() {
    let installed = after(state(), &install(&state()).unwrap());
    let expected = uninstall(&installed, Caller::User).steps;
    let nonsense = State { wsl_conf: Some("nonsense\n".into()), ..installed.clone() };
    let twice = State { wsl_conf: Some("[boot]\ncommand = a\ncommand = b\n".into()), ..installed.clone() };
    for state in [nonsense, twice] {
        let plan = uninstall(&state, Caller::User);
        assert_eq!((&plan.steps, &plan.refused), (&expected, &Vec::new()));
        assert!(plan.notes[0].contains("line") && plan.notes[0].contains("nothing of ours"), "{plan:?}");
    }
    // With us in it, somebody has to take us out; the rest is done.
    let conf = wsl_conf::with_ours(Some("[boot]\n"), US).unwrap() + "nonsense\n";
    let plan = uninstall(&State { wsl_conf: Some(conf), ..installed }, Caller::User);
    assert_eq!(plan.steps, expected);
    assert!(matches!(&*plan.refused, [why] if why.contains("line 4")), "{plan:?}");
}

#[test]
fn a_linked_wsl_conf_is_refused_only_if_it_has_to_change() {
    let linked = |state: State| State { wsl_conf_link: Some("/nix/store/x".into()), ..state };
    assert_eq!(install(&linked(state())).unwrap(), install(&state()).unwrap());
    let error = install(&linked(without_systemd())).unwrap_err();
    assert!(error.to_string().contains("is a link to /nix/store/x"), "{error:#}");
    let installed = after(without_systemd(), &install(&without_systemd()).unwrap());
    assert_eq!(install(&linked(installed.clone())).unwrap().steps, []);
    let plan = uninstall(&linked(installed), Caller::User);
    assert_eq!((plan.steps.len(), plan.refused.len()), (0, 1), "{plan:?}");
    assert_eq!(
        uninstall(&linked(without_systemd()), Caller::User),
        uninstall(&without_systemd(), Caller::User)
    );
}

#[test]
fn uninstall_ends_the_agent_where_no_systemd_does() {
    let agent = Some(Running { pid: 7, replaced: None });
    let installed = after(without_systemd(), &install(&without_systemd()).unwrap());
    let running = State { agent: agent.clone(), ..installed };
    assert_eq!(
        names(&uninstall(&running, Caller::User)),
        ["write /etc/wsl.conf", "end the agent (process 7)"]
    );
    let by_hand = State { agent: agent.clone(), ..without_systemd() };
    assert_eq!(uninstall(&by_hand, Caller::User).steps, [Step::End { pid: 7 }]);
    // The unit's is stopped with it; another one is somebody's own, unless its program goes.
    let unit = State { agent: agent.clone(), ..after(state(), &install(&state()).unwrap()) };
    assert!(!uninstall(&unit, Caller::User).steps.contains(&Step::End { pid: 7 }));
    let by_hand = State { agent, ..state() };
    assert_eq!(uninstall(&by_hand, Caller::User).steps, []);
    assert_eq!(uninstall(&by_hand, Caller::Package).steps, [Step::End { pid: 7 }]);
}

#[test]
fn an_agent_whose_program_was_replaced_is_restarted() {
    let replaced = Some(Running { pid: 7, replaced: Some(US.into()) });
    let restart = [Step::Restart { pid: 7, program: US.into() }];
    let installed = after(without_systemd(), &install(&without_systemd()).unwrap());
    let old = State { agent: replaced.clone(), ..installed };
    let plan = install(&old).unwrap();
    assert_eq!((&*plan.steps, &*plan.notes), (&restart[..], &[][..]));
    assert_eq!(upgrade(&old), Plan { steps: restart.into(), ..Plan::default() });
    let unit = after(state(), &install(&state()).unwrap());
    let old = State { agent: replaced, ..unit.clone() };
    assert_eq!(
        install(&old).unwrap().steps,
        [Step::Systemctl(&["restart", "--no-block", unit::NAME])],
        "by systemd, which has started it"
    );
    let current = State { agent: Some(Running { pid: 7, replaced: None }), ..unit };
    assert_eq!(install(&current).unwrap().steps, []);
    assert_eq!(upgrade(&current), Plan::default());
}
