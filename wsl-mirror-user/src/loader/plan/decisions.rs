//! What every plan decides first: hook, `SETTINGS`. Fails where the machine forbids a plan.

use std::net::Ipv4Addr;

use anyhow::Result;
use wsl_mirror_core::abi::{Carrying, Hook, LAYOUT, LinuxClients, Path, Policy, Settings};

use super::changes::{owner_changes, policy_changes};
use crate::config::{Config, HookChoice};
use crate::exit::{Exit, Failure};
use crate::host::interface::NAME_MAX;
use crate::loader::attachments::InterfaceAttachment;
use crate::loader::clsact;
use crate::loader::state::State;
use crate::loader::step::Step;

/// What happens to the clsact qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClsactChange {
    /// Nothing.
    Keep,
    /// It is made.
    Make,
}

/// What both plans have decided.
pub struct Decisions {
    pub hook: Hook,
    pub clsact: ClsactChange,
    pub settings: Settings,
}

impl Decisions {
    /// Fails where the machine or what is loaded forbids it.
    pub fn new(state: &State, config: &Config) -> Result<Self> {
        let hook = choose_hook(state, config)?;
        refuse_anothers_interface(state)?;
        refuse_second_interface(state, hook)?;
        refuse_other_alias(state, config)?;
        if hook == Hook::ClsBpf
            && let Some(direction) = state.interface.clsact.taken.first()
        {
            return Err(Failure::new(
                Exit::Kernel,
                format!(
                    "somebody else has a tc filter where ours has to be on {name}, at priority {priority} of \
                     {side}: look at it with `tc filter show dev {name} {side}`, and give it another priority",
                    name = state.interface.name,
                    priority = clsact::priority(*direction),
                    side = direction.name()
                ),
            ));
        }
        let is_there = state.interface.index != 0;
        let clsact = if is_there && hook == Hook::ClsBpf && !state.interface.clsact.exists {
            ClsactChange::Make
        } else {
            ClsactChange::Keep
        };
        Ok(Self { hook, clsact, settings: settings(state, config, hook, clsact) })
    }

    /// The program that is attached there by the hook.
    pub fn attached(&self, state: &State, on: InterfaceAttachment) -> Option<u32> {
        match self.hook {
            Hook::Tcx => linked_here(state, on),
            Hook::ClsBpf => state.interface.clsact.our_programs.get(&on.direction).copied(),
        }
    }

    /// What has to be written so that maps and machine are as they should be.
    pub fn writes(&self, state: &State, config: &Config) -> Vec<Step> {
        let mut steps = Vec::new();
        let changes = policy_changes(&state.policies, &config.port_policies());
        if !changes.is_empty() {
            steps.push(Step::WritePolicies(changes));
        }
        let changes = owner_changes(&state.owners, &config.owner_policies());
        if !changes.is_empty() {
            steps.push(Step::WriteOwners(changes));
        }
        let clears_mark = !state.local_rules.changes().is_empty();
        let before = state
            .settings
            .map(|settings| Settings { lo_mark: if clears_mark { 0 } else { settings.lo_mark }, ..settings });
        if before != Some(self.settings) {
            steps.push(Step::WriteSettings { old: before, new: self.settings });
        }
        steps
    }
}

/// Two programs on one interface would do everything twice, and each would remove what the other needs.
fn refuse_anothers_interface(state: &State) -> Result<()> {
    let Some(other) = state.steered_by_others else { return Ok(()) };
    Err(Failure::new(
        Exit::OtherDistribution,
        format!(
            "{} is steered already, by wsl-mirror of another distribution (program {}, {}): there is nothing to do \
             here, and nothing was changed. To steer it from this one, run `wsl-mirror unload` there first",
            state.interface.name,
            other.program,
            other.hook.name()
        ),
    ))
}

/// The program that the pinned link holds on the interface that the configuration names. A link whose interface went away
/// can still be opened; one of an older interface of the same name too.
fn linked_here(state: &State, on: InterfaceAttachment) -> Option<u32> {
    let on_interface = state.interface.tcx_programs.as_ref()?.get(&on.direction)?;
    state.linked_programs.get(&on.direction).copied().filter(|linked| on_interface.contains(linked))
}

fn choose_hook(state: &State, config: &Config) -> Result<Hook> {
    match (config.hook, state.interface.tcx_programs.is_some()) {
        (HookChoice::Auto | HookChoice::Tcx, true) => Ok(Hook::Tcx),
        (HookChoice::Auto, false) | (HookChoice::ClsBpf, _) => Ok(Hook::ClsBpf),
        (HookChoice::Tcx, false) => Err(Failure::new(
            Exit::Kernel,
            "the configuration says hook = \"tcx\", but this kernel has no tcx (Linux 6.6 and later have it): \
             say \"auto\" or \"cls_bpf\"",
        )),
    }
}

/// One set of pins steers one interface by one hook: to change either, unload first.
fn refuse_second_interface(state: &State, hook: Hook) -> Result<()> {
    let Some(settings) = state.settings.filter(|settings| settings.layout == LAYOUT) else { return Ok(()) };
    if !state.steered_is_alive {
        return Ok(());
    }
    let steered = settings.interface_name();
    // By index: the interface may have been renamed.
    if settings.ifindex != state.interface.index {
        return Err(Failure::new(
            Exit::OtherInterface,
            format!(
                "wsl-mirror steers {steered} already; to steer {} instead, run `wsl-mirror unload` first",
                state.interface.name
            ),
        ));
    }
    match Hook::from_number(settings.hook) {
        Some(current) if current != hook => Err(Failure::new(
            Exit::OtherInterface,
            format!(
                "wsl-mirror is attached to {steered} by {} already; to attach it by {} instead, run \
                 `wsl-mirror unload` first",
                current.name(),
                hook.name()
            ),
        )),
        _ => Ok(()),
    }
}

/// Entries on the alias in force carry flows: their packets would find no program that knows them. The same is true of
/// direct flows and the source alias.
fn refuse_other_alias(state: &State, config: &Config) -> Result<()> {
    let Some(settings) = state.settings.filter(|settings| settings.layout == LAYOUT) else { return Ok(()) };
    for (key, name, flows, in_force, new) in [
        ("alias", "alias", "flows are carried by", settings.alias.into(), config.alias),
        (
            "source_alias",
            "source alias",
            "direct flows come from",
            settings.source_alias.into(),
            config.source_alias,
        ),
    ] {
        let in_force: Ipv4Addr = in_force;
        if in_force != new {
            return Err(Failure::new(
                Exit::Config,
                format!(
                    "the configuration says {key} = \"{new}\", but {flows} {in_force}, and nothing was changed: to \
                     change the {name}, run `wsl-mirror unload`, which ends them, and load again"
                ),
            ));
        }
    }
    Ok(())
}

/// Direct flows would take packets from the address' other user, and lose their own to it.
pub fn refuse_used_source_alias(state: &State) -> Result<()> {
    let Some(used_by) = state.source_alias.used_by() else { return Ok(()) };
    Err(Failure::new(
        Exit::Config,
        format!(
            "the configuration says source_alias = \"{}\" (or means it by default), but that address is in use, and \
             nothing was changed: {used_by}. Choose an address that nobody uses",
            state.source_alias.address()
        ),
    ))
}

/// `SETTINGS` as they should be.
pub fn settings(state: &State, config: &Config, hook: Hook, clsact: ClsactChange) -> Settings {
    let mut interface = [0; NAME_MAX];
    let name = state.interface.name.as_bytes();
    let len = name.len().min(NAME_MAX - 1);
    interface[..len].copy_from_slice(&name[..len]);
    // Of an interface that is gone, what is known of it.
    let before = state.settings.map_or(0, |settings| settings.ifindex);
    let index = if state.interface.index == 0 { before } else { state.interface.index };
    let made_before = state.settings.is_some_and(|settings| index != 0 && settings.clsact_ifindex == index);
    Settings {
        layout: LAYOUT,
        mark: config.mark,
        default_policy: Policy::from(config.default) as u32,
        hook: hook as u32,
        ifindex: index,
        clsact_ifindex: if clsact == ClsactChange::Make || (hook == Hook::ClsBpf && made_before) {
            index
        } else {
            0
        },
        interface,
        alias: config.alias.octets(),
        carrying: if state.obstacles(config.alias).is_empty() { Carrying::On } else { Carrying::Off } as u32,
        source_alias: config.source_alias.octets(),
        path: Path::from(config.path) as u32,
        linux_clients: LinuxClients::from(config.linux_clients) as u32,
        lo_mark: state.local_rules.lo_mark(state.settings.map_or(0, |settings| settings.lo_mark)),
        netns_cookie: state.netns_cookie,
    }
}
