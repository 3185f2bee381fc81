//! Plans for Linux' own clients.

use wsl_mirror_core::abi::LinuxClients;

use super::*;

#[test]
fn links_of_udp_hooks_come_with_targets_and_not_with_a_plan() {
    let links: Vec<_> = attachments::of_udp().map(|udp| udp.on.link_pin).collect();
    let mut state = loaded();
    state.pins.names.retain(|name| !links.contains(&name.as_str()));
    assert_eq!(difference(&state, &Config::default()).unwrap(), []);
    let program = attachments::of_udp().next().unwrap().program_pin;
    state.pins.names.retain(|name| name != program);
    let steps = difference(&state, &Config::default()).unwrap();
    assert_eq!(steps, plan(&state, &Config::default()).unwrap(), "without its program a hook cannot come");
}

#[test]
fn programs_of_udp_hooks_are_pinned_before_targets_are_written() {
    for state in [fresh(), loaded()] {
        let steps = plan(&state, &Config::default()).unwrap();
        let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().rposition(wanted).unwrap();
        let pinned = at(&|step| matches!(step, Step::PinUdpProgram(_)));
        assert!(pinned < at(&|step| matches!(step, Step::TagSockets { .. })), "{steps:?}");
    }
}

#[test]
fn clients_that_are_switched_off_are_left_alone() {
    let config = Config { linux_clients: Switch::Off, ..Config::default() };
    let steps = plan(&loaded(), &config).unwrap();
    let off = LinuxClients::Off as u32;
    let written = |step: &Step| matches!(step, Step::WriteSettings { new, .. } if new.linux_clients == off);
    assert!(steps.iter().any(written), "{steps:?}");
    let tagged = |step: &Step| matches!(step, Step::TagSockets { linux_clients: Switch::Off, .. });
    assert!(steps.iter().any(tagged), "{steps:?}");
    assert!(steps.contains(&Step::AttachToCgroup(on_cgroup("wsl_mirror_co4"))), "`keep_on_lo` needs it");
}
