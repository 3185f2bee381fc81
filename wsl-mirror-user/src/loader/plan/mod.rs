//! From the state and the configuration to the steps in between. Pure: [`super::apply`] carries them out.

mod changes;
mod decisions;
#[cfg(test)]
mod tests;

use anyhow::Result;
use wsl_mirror_core::abi::{Hook, LAYOUT};

use self::decisions::{ClsactChange, Decisions};
use super::attachments;
use super::pins::MAPS;
use super::source_alias::Change;
use super::state::State;
use super::step::Step;
use crate::config::Config;

/// Computes the steps from `state` to what `config` says. New programs of this release replace those that are there.
/// Without the interface, no program is attached to it. A source alias in others' use is an error.
pub fn plan(state: &State, config: &Config) -> Result<Vec<Step>> {
    decisions::refuse_used_source_alias(state)?;
    take_over(state, config)
}

/// The same for an agent: a source alias in others' use stops direct flows, and nothing else. The agent says so.
pub fn take_over(state: &State, config: &Config) -> Result<Vec<Step>> {
    Ok(load_all(state, config, &Decisions::new(state, config)?))
}

fn load_all(state: &State, config: &Config, decisions: &Decisions) -> Vec<Step> {
    let mut steps = Vec::new();
    if !state.has_bpffs {
        steps.push(Step::MountBpffs);
    }
    if !state.pins.has_layout {
        steps.push(Step::MakeDirectories);
    }
    steps.extend(state.pins.leftovers.iter().cloned().map(Step::RemoveLeftover));
    let (reused, fresh): (Vec<_>, Vec<_>) = MAPS.iter().partition(|name| state.pins.has(name));
    steps.push(Step::LoadProgram { reused, log: config.log });
    // Before the programs know the source alias.
    steps.extend(routing(state));
    steps.extend(local_rules(state));
    steps.extend(decisions.writes(state, config));
    steps.extend(fresh.into_iter().map(Step::PinMap));
    // In this order no listener is missed: programs on the cgroup tag new listeners, then the loader tags the older ones,
    // and then the program on the interface asks for tags.
    steps.extend(attachments::on_cgroup().map(Step::AttachToCgroup));
    steps.extend(attachments::of_udp().map(Step::PinUdpProgram));
    steps.push(Step::TagSockets { owners: config.owner_policies(), linux_clients: config.linux_clients });
    steps.extend(attachments::on_interface().map(Step::PinProgram));
    if decisions.clsact == ClsactChange::Make {
        steps.push(Step::AddClsact);
    }
    if state.interface.index != 0 {
        steps.extend(attachments::on_interface().map(|on| {
            match (decisions.hook, decisions.attached(state, on)) {
                (Hook::Tcx, Some(old)) => Step::ReplaceInLink { on, old },
                (Hook::Tcx, None) => Step::AttachLink(on),
                (Hook::ClsBpf, Some(old)) => Step::ReplaceInFilter { on, old },
                (Hook::ClsBpf, None) => Step::AddFilter(on),
            }
        }));
    }
    steps.extend(attachments::on_interface().map(Step::SwapProgramPin));
    steps
}

/// Computes the missing steps, for a running agent. Pinned programs and maps stay in use if all of them are there. No steps
/// mean that everything is as it should be.
pub fn difference(state: &State, config: &Config) -> Result<Vec<Step>> {
    let decisions = Decisions::new(state, config)?;
    if !is_complete(state) {
        return Ok(load_all(state, config, &decisions));
    }
    let mut steps: Vec<Step> = routing(state).chain(local_rules(state)).collect();
    steps.extend(decisions.writes(state, config));
    if decisions.clsact == ClsactChange::Make {
        steps.push(Step::AddClsact);
    }
    if state.interface.index != 0 {
        steps.extend(attachments::on_interface().filter_map(|on| {
            match (decisions.hook, decisions.attached(state, on)) {
                (Hook::Tcx, Some(_)) => None,
                (Hook::Tcx, None) => Some(Step::AttachLink(on)),
                (Hook::ClsBpf, Some(old)) if state.pinned_programs.get(&on.direction) == Some(&old) => None,
                (Hook::ClsBpf, Some(old)) => Some(Step::ReplaceInFilter { on, old }),
                (Hook::ClsBpf, None) => Some(Step::AddFilter(on)),
            }
        }));
    }
    if !steps.is_empty() {
        steps.insert(0, Step::UsePinned);
    }
    Ok(steps)
}

/// What has to change of the source alias' rules and route.
fn routing(state: &State) -> impl Iterator<Item = Step> {
    state.source_alias.changes().into_iter().map(Step::ChangeRouting)
}

/// What has to change of the rules that keep connections on `lo`. Meanwhile no socket is marked.
fn local_rules(state: &State) -> impl Iterator<Item = Step> {
    let changes = state.local_rules.changes();
    let marking = state.settings.filter(|settings| settings.lo_mark != 0 && !changes.is_empty());
    marking.map(Step::ClearLoMark).into_iter().chain(changes.into_iter().map(Step::ChangeLocalRules))
}

/// The steps of a [`difference`] that are no repairs: what is written of ports and owners, and the removal of rules that keep
/// connections on `lo`. `SETTINGS` has to match the machine, and waits for the repairs.
pub fn without_repairs(steps: Vec<Step>) -> Vec<Step> {
    if !steps.iter().any(Step::is_repair) {
        return steps;
    }
    let is_written = |step: &Step| {
        matches!(
            step,
            Step::WritePolicies(_)
                | Step::WriteOwners(_)
                | Step::ClearLoMark(_)
                | Step::ChangeLocalRules(Change::RemoveRule(_))
        )
    };
    let uses_pinned = steps.first() == Some(&Step::UsePinned);
    let mut written: Vec<Step> = steps.into_iter().filter(|step| uses_pinned && is_written(step)).collect();
    if !written.is_empty() {
        written.insert(0, Step::UsePinned);
    }
    written
}

/// Whether every pin of a load is there and in use. A tcx link needs an interface, and links of UDP's hooks need a target, so
/// they do not count.
fn is_complete(state: &State) -> bool {
    let of_udp = attachments::of_udp().map(|udp| udp.program_pin);
    let mut programs = attachments::on_interface().map(|on| on.program_pin).chain(of_udp);
    let mut links = attachments::on_cgroup().map(|on| on.link_pin);
    state.has_bpffs
        && state.pins.leftovers.is_empty()
        && state.detached.is_empty()
        && programs.all(|name| state.pins.has(name))
        && MAPS.iter().all(|name| state.pins.has(name))
        && links.all(|name| state.pins.has(name))
        && state.settings.is_some_and(|settings| settings.layout == LAYOUT)
}
