mod clients;
mod keeping;
mod routing;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use wsl_mirror_core::abi::{Carrying, Owner, OwnerPolicy, Policy, PortKey, PortPolicy, Protocol, Settings};

use super::changes::policy_changes;
use super::decisions::settings;
use super::*;
use crate::config::{HookChoice, LogLevel, Switch};
use crate::exit::{Exit, exit_of};
use crate::host::firewall::Hooks;
use crate::loader::attachments::{CgroupAttachment, Direction, InterfaceAttachment};
use crate::loader::clsact::Clsact;
use crate::loader::instances::Instance;
use crate::loader::pins::Pins;
use crate::loader::state::Interface;
use crate::loader::step::OwnerChange;

/// The program for packets that come in.
fn ingress() -> InterfaceAttachment {
    attachments::on_side(Direction::Ingress).unwrap()
}

/// The program for packets that go out.
fn egress() -> InterfaceAttachment {
    attachments::on_side(Direction::Egress).unwrap()
}

fn on_cgroup(program: &str) -> CgroupAttachment {
    attachments::on_cgroup().find(|on| on.program == program).unwrap()
}

/// Programs on both sides.
fn tcx(ingress: &[u32], egress: &[u32]) -> BTreeMap<Direction, Vec<u32>> {
    [(Direction::Ingress, ingress.to_vec()), (Direction::Egress, egress.to_vec())].into()
}

/// Our programs on both sides.
fn both() -> BTreeMap<Direction, u32> {
    [(Direction::Ingress, 42), (Direction::Egress, 43)].into()
}

fn fresh() -> State {
    State {
        has_bpffs: true,
        interface: Interface {
            name: "loopback0".into(),
            index: 7,
            tcx_programs: Some(tcx(&[], &[])),
            clsact: Clsact::default(),
        },
        ..State::default()
    }
}

fn loaded() -> State {
    let config = Config::default();
    let mut state = fresh();
    state.settings = Some(settings(&state, &config, Hook::Tcx, ClsactChange::Keep));
    state.pins = Pins {
        has_directory: true,
        has_layout: true,
        names: MAPS.iter().copied().chain(attachments::pins()).map(str::to_owned).collect(),
        leftovers: Vec::new(),
    };
    state.owners = config.owner_policies();
    state.policies = config.port_policies();
    state.linked_programs = both();
    state.pinned_programs = both();
    state.interface.tcx_programs = Some(tcx(&[42, 99], &[98, 43]));
    state.steered_is_alive = true;
    state
}

#[test]
fn a_first_load_makes_everything_and_attaches_last() {
    let mut state = fresh();
    state.has_bpffs = false;
    let steps = plan(&state, &Config::default()).unwrap();
    assert_eq!(steps[..2], [Step::MountBpffs, Step::MakeDirectories]);
    assert_eq!(steps[2], Step::LoadProgram { reused: vec![], log: LogLevel::Off });
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::PinMap(_))).count(), MAPS.len());
    let last = [
        Step::AttachLink(egress()),
        Step::AttachLink(ingress()),
        Step::SwapProgramPin(egress()),
        Step::SwapProgramPin(ingress()),
    ];
    assert_eq!(steps[steps.len() - 4..], last);
}

/// The same after `loopback0` has gone.
fn without_interface(mut state: State) -> State {
    state.interface = Interface { tcx_programs: Some(tcx(&[], &[])), index: 0, ..state.interface };
    state.steered_is_alive = false;
    state
}

#[test]
fn where_everything_is_as_it_should_be_there_is_no_difference() {
    assert_eq!(difference(&loaded(), &Config::default()).unwrap(), []);
}

#[test]
fn an_interface_that_came_back_is_attached_to_and_nothing_is_loaded() {
    let mut state = loaded();
    state.interface.index = 8;
    state.interface.tcx_programs = Some(tcx(&[], &[]));
    state.steered_is_alive = false;
    let steps = difference(&state, &Config::default()).unwrap();
    let new = Settings { ifindex: 8, ..state.settings.unwrap() };
    assert_eq!(
        steps,
        [
            Step::UsePinned,
            Step::WriteSettings { old: state.settings, new },
            Step::AttachLink(egress()),
            Step::AttachLink(ingress())
        ]
    );
    state.interface.tcx_programs = None;
    state.settings = state.settings.map(|settings| Settings { hook: Hook::ClsBpf as u32, ..settings });
    let steps = difference(&state, &Config::default()).unwrap();
    assert_eq!(steps[2..], [Step::AddClsact, Step::AddFilter(egress()), Step::AddFilter(ingress())]);
}

#[test]
fn without_the_interface_all_is_loaded_and_nothing_attached() {
    let steps = plan(&without_interface(fresh()), &Config::default()).unwrap();
    assert_eq!(steps.last(), Some(&Step::SwapProgramPin(ingress())));
    assert!(
        steps.contains(&Step::AttachToCgroup(on_cgroup("wsl_mirror_bd4"))),
        "no socket is missed meanwhile"
    );
    let forbidden = |step: &&Step| matches!(step, Step::AttachLink(_) | Step::AddFilter(_) | Step::AddClsact);
    assert_eq!(steps.iter().find(forbidden), None);
    // Of one that has gone, everything waits for it to come back.
    assert_eq!(difference(&without_interface(loaded()), &Config::default()).unwrap(), []);
}

#[test]
fn an_egress_program_that_is_gone_is_attached_again() {
    let mut state = loaded();
    state.interface.tcx_programs = Some(tcx(&[42, 99], &[98]));
    state.steered_is_alive = false;
    let steps = difference(&state, &Config::default()).unwrap();
    assert_eq!(steps, [Step::UsePinned, Step::AttachLink(egress())]);
}

#[test]
fn where_a_pin_is_missing_or_left_over_everything_is_loaded_again() {
    let mut missing = loaded();
    missing.pins.names.retain(|name| name != "FRAGMENTS");
    let mut left_over = loaded();
    left_over.pins.leftovers.push("program_new".into());
    for state in [missing, left_over] {
        let config = Config::default();
        assert_eq!(difference(&state, &config).unwrap(), plan(&state, &config).unwrap());
    }
}

#[test]
fn what_another_distribution_steers_is_left_to_it() {
    let state = State {
        steered_by_others: Some(Instance {
            ifindex: 7,
            direction: Direction::Ingress,
            hook: Hook::Tcx,
            program: 99,
        }),
        ..fresh()
    };
    for plan in [plan, difference] {
        let error = plan(&state, &Config::default()).unwrap_err();
        assert_eq!(exit_of(&error), Exit::OtherDistribution);
        assert!(error.to_string().contains("program 99, tcx"), "{error}");
    }
}

#[test]
fn a_second_load_keeps_the_maps_and_replaces_the_program_in_the_link() {
    let steps = plan(&loaded(), &Config::default()).unwrap();
    let mut expected = vec![Step::LoadProgram { reused: MAPS.to_vec(), log: LogLevel::Off }];
    expected.extend(attachments::on_cgroup().map(Step::AttachToCgroup));
    expected.extend(attachments::of_udp().map(Step::PinUdpProgram));
    expected.extend([
        Step::TagSockets { owners: Config::default().owner_policies(), linux_clients: Switch::Auto },
        Step::PinProgram(egress()),
        Step::PinProgram(ingress()),
        Step::ReplaceInLink { on: egress(), old: 43 },
        Step::ReplaceInLink { on: ingress(), old: 42 },
        Step::SwapProgramPin(egress()),
        Step::SwapProgramPin(ingress()),
    ]);
    assert_eq!(steps, expected);
}

#[test]
fn sockets_are_tagged_after_the_hooks_are_there_and_before_anybody_asks() {
    for state in [fresh(), loaded()] {
        let steps = plan(&state, &Config::default()).unwrap();
        let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
        let last_hook = at(&|step| *step == Step::AttachToCgroup(on_cgroup("wsl_mirror_co6")));
        let tagged = at(&|step| matches!(step, Step::TagSockets { .. }));
        let asked = at(&|step| matches!(step, Step::AttachLink(_) | Step::ReplaceInLink { .. }));
        assert!(last_hook < tagged && tagged < asked, "{steps:?}");
    }
}

#[test]
fn owners_that_are_in_the_file_no_more_are_taken_out() {
    let mut state = loaded();
    let gone = Owner::new(b"gone", 0);
    state.owners.insert(gone, OwnerPolicy::new(Policy::Steer));
    let steps = plan(&state, &Config::default()).unwrap();
    let old = Some(OwnerPolicy::new(Policy::Steer));
    assert!(steps.contains(&Step::WriteOwners(vec![OwnerChange { owner: gone, old, new: None }])));
}

#[test]
fn an_interface_made_anew_under_the_same_name_gets_a_new_link() {
    let mut state = loaded();
    state.interface.index = 8;
    state.interface.tcx_programs = Some(tcx(&[99], &[]));
    state.steered_is_alive = false;
    let steps = plan(&state, &Config::default()).unwrap();
    assert!(steps.contains(&Step::AttachLink(ingress())), "{steps:?}");
    assert!(steps.iter().any(|s| matches!(s, Step::WriteSettings { new, .. } if new.ifindex == 8)));
}

#[test]
fn a_second_interface_is_refused_while_the_first_one_is_steered() {
    let mut state = loaded();
    state.interface.name = "eth0".into();
    state.interface.index = 9;
    state.interface.tcx_programs = Some(tcx(&[], &[]));
    assert_eq!(exit_of(&plan(&state, &Config::default()).unwrap_err()), Exit::OtherInterface);
    state.steered_is_alive = false;
    assert!(plan(&state, &Config::default()).is_ok());
}

#[test]
fn another_hook_is_refused_while_the_first_one_is_in_use() {
    let config = Config { hook: HookChoice::ClsBpf, ..Config::default() };
    assert_eq!(exit_of(&plan(&loaded(), &config).unwrap_err()), Exit::OtherInterface);
    assert!(plan(&fresh(), &config).unwrap().contains(&Step::AddClsact));
}

#[test]
fn without_tcx_the_filter_is_used_unless_tcx_is_demanded() {
    let mut state = fresh();
    state.interface.tcx_programs = None;
    let steps = plan(&state, &Config::default()).unwrap();
    assert_eq!(
        steps[steps.len() - 5..],
        [
            Step::AddClsact,
            Step::AddFilter(egress()),
            Step::AddFilter(ingress()),
            Step::SwapProgramPin(egress()),
            Step::SwapProgramPin(ingress())
        ]
    );
    let demanded = Config { hook: HookChoice::Tcx, ..Config::default() };
    assert_eq!(exit_of(&plan(&state, &demanded).unwrap_err()), Exit::Kernel);
}

#[test]
fn a_clsact_qdisc_is_ours_only_if_we_made_it() {
    let config = Config { hook: HookChoice::ClsBpf, ..Config::default() };
    let made_by = |steps: Vec<Step>| {
        steps.iter().find_map(|step| match step {
            Step::WriteSettings { new, .. } => Some(new.clsact_ifindex),
            _ => None,
        })
    };
    assert_eq!(made_by(plan(&fresh(), &config).unwrap()), Some(7));
    let mut theirs = fresh();
    theirs.interface.clsact.exists = true;
    assert_eq!(made_by(plan(&theirs, &config).unwrap()), Some(0));
    // A second load finds the qdisc that the first one made, and still knows that.
    let mut second = theirs;
    second.settings = Some(settings(&second, &config, Hook::ClsBpf, ClsactChange::Make));
    second.interface.clsact.our_programs = both();
    let steps = plan(&second, &config).unwrap();
    assert!(steps.contains(&Step::ReplaceInFilter { on: ingress(), old: 42 }));
    assert_eq!(made_by(steps), None, "nothing to write: it stands there");
}

#[test]
fn a_place_that_somebody_else_has_taken_is_refused_only_where_it_is_needed() {
    let mut state = fresh();
    state.interface.clsact = Clsact { exists: true, taken: [Direction::Ingress].into(), ..Clsact::default() };
    let config = Config { hook: HookChoice::ClsBpf, ..Config::default() };
    assert_eq!(exit_of(&plan(&state, &config).unwrap_err()), Exit::Kernel);
    assert!(plan(&state, &Config::default()).is_ok());
}

/// The machine after its nat chains went.
fn without_nat(mut state: State) -> State {
    Arc::make_mut(&mut state.firewall).nat = Hooks::Absent;
    state
}

#[test]
fn an_obstacle_stops_carrying_and_its_end_begins_it_again() {
    let carrying = |steps: &[Step]| {
        steps.iter().find_map(|step| match step {
            Step::WriteSettings { new, .. } => Some(Carrying::from_number(new.carrying)),
            _ => None,
        })
    };
    let plan_of = |state: &State| plan(state, &Config::default()).unwrap();
    assert_eq!(carrying(&plan_of(&fresh())), Some(Carrying::On));
    assert_eq!(carrying(&plan_of(&without_nat(fresh()))), Some(Carrying::Off));
    let mut state = without_nat(loaded());
    let steps = difference(&state, &Config::default()).unwrap();
    assert!(matches!(steps[..], [Step::UsePinned, Step::WriteSettings { .. }]), "{steps:?}");
    assert_eq!(carrying(&steps), Some(Carrying::Off));
    assert_eq!(without_repairs(steps.clone()), steps, "it is no repair");
    state.settings = state.settings.map(|settings| Settings { carrying: Carrying::Off as u32, ..settings });
    assert_eq!(difference(&state, &Config::default()).unwrap(), []);
    Arc::make_mut(&mut state.firewall).nat = Hooks::Present;
    assert_eq!(carrying(&difference(&state, &Config::default()).unwrap()), Some(Carrying::On));
}

#[test]
fn a_changed_alias_is_refused_until_unload() {
    let (alias, source_alias) = (Ipv4Addr::new(127, 1, 2, 3), Ipv4Addr::new(192, 0, 2, 1));
    for (config, words) in [
        (Config { alias, ..Config::default() }, ["says alias = \"127.1.2.3\"", "127.119.0.1"]),
        (
            Config { source_alias, ..Config::default() },
            ["says source_alias = \"192.0.2.1\"", "direct flows come from 192.0.0.8"],
        ),
    ] {
        for plan in [plan, difference] {
            let error = plan(&loaded(), &config).unwrap_err();
            assert_eq!(exit_of(&error), Exit::Config);
            let text = error.to_string();
            assert!(words.into_iter().chain(["unload"]).all(|word| text.contains(word)), "{text}");
        }
        let steps = plan(&fresh(), &config).unwrap();
        let aliases = (config.alias.octets(), config.source_alias.octets());
        let writes = |step: &Step| matches!(step, Step::WriteSettings { new, .. } if (new.alias, new.source_alias) == aliases);
        assert!(steps.iter().any(writes), "{steps:?}");
    }
}

#[test]
fn a_hook_that_is_detached_makes_all_anew() {
    let mut state = loaded();
    state.detached.push(on_cgroup("wsl_mirror_bd4"));
    let steps = difference(&state, &Config::default()).unwrap();
    assert!(steps.contains(&Step::AttachToCgroup(on_cgroup("wsl_mirror_bd4"))), "{steps:?}");
}

#[test]
fn without_repairs_only_what_is_written_of_ports_and_owners_is_done() {
    let mut state = loaded();
    state.interface.tcx_programs = Some(tcx(&[42], &[]));
    let steps = difference(&state, &Config::default()).unwrap();
    assert_eq!(without_repairs(steps), []);
    state.owners.clear();
    let steps = without_repairs(difference(&state, &Config::default()).unwrap());
    assert!(matches!(steps.as_slice(), [Step::UsePinned, Step::WriteOwners(_)]), "{steps:?}");
    state.interface.tcx_programs = Some(tcx(&[42], &[43]));
    let steps = difference(&state, &Config::default()).unwrap();
    assert_eq!(without_repairs(steps.clone()), steps, "nothing is repaired");
    state.pins.names.clear();
    assert_eq!(without_repairs(difference(&state, &Config::default()).unwrap()), []);
}

#[test]
fn the_file_changes_its_own_fields_only() {
    let key = |port| PortKey::new(Protocol::Tcp, port);
    let policy = |cli, config, path| PortPolicy { cli, config, path, flags: u8::from(path != 0) };
    let there = BTreeMap::from([
        (key(1), policy(1, 0, 0)),
        (key(2), policy(1, 1, 2)),
        (key(3), policy(0, 1, 0)),
        (key(4), policy(0, 1, 3)),
    ]);
    let file = [(key(1), policy(0, 2, 1)), (key(4), policy(0, 1, 3)), (key(5), policy(0, 3, 0))];
    let changes = policy_changes(&there, &BTreeMap::from(file));
    let after: Vec<_> = changes.iter().map(|change| (change.key.port, change.new)).collect();
    let expected = [(1, policy(1, 2, 1)), (2, policy(1, 0, 0)), (3, policy(0, 0, 0)), (5, policy(0, 3, 0))];
    assert_eq!(after, expected);
}
