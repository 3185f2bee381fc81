//! From what is there and what is wanted to the steps in between. Pure: [`super::apply`] carries them out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;
use wsl_mirror_core::abi::{
    Hook, LAYOUT, Owner, OwnerPolicy, Policy, PortKey, PortPolicy, PortRule, Settings,
};

use super::hook::{Clsact, FILTER_PRIORITY, Found};
use super::owners::SocketHook;
use super::pins::{self, MAPS, Pins, bpffs};
use super::{delivery, marks};
use crate::config::{Config, HookChoice, LogLevel};
use crate::exit::{Exit, Failure};
use crate::host::interface::NAME_MAX;

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Whether bpffs is mounted.
    pub has_bpffs: bool,
    /// What is pinned.
    pub pins: Pins,
    /// `SETTINGS`, if pinned.
    pub settings: Option<Settings>,
    /// `PORT_POLICY`, if pinned.
    pub policies: BTreeMap<PortKey, PortPolicy>,
    /// `OWNERS`, if pinned.
    pub owners: BTreeMap<Owner, OwnerPolicy>,
    /// The hooks for sockets whose pinned links hang on a cgroup no more (`bpftool link detach`, or the cgroup is gone).
    pub detached_hooks: Vec<SocketHook>,
    /// The interface that is asked for.
    pub interface: Interface,
    /// The id of the pinned program.
    pub pinned_program: Option<u32>,
    /// The id of the program in the pinned link.
    pub linked_program: Option<u32>,
    /// The program of another distribution that is on the interface.
    pub steered_by_others: Option<Found>,
    /// Whether the interface that is steered according to `SETTINGS` still is the one that was steered then.
    pub steered_is_alive: bool,
    /// What `PORT_DELIVERY`, if pinned, says of rules.
    pub rules: BTreeMap<PortKey, PortRule>,
    /// What delivery by `lo`, and the mark, depend on.
    pub delivery: delivery::State,
}

/// The interface that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index; 0 as long as there is none.
    pub index: u32,
    /// The ids of its tcx programs; `None` if the kernel has no tcx.
    pub tcx_programs: Option<Vec<u32>>,
    /// The older hook; only looked at where it matters.
    pub clsact: Clsact,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mount bpffs.
    MountBpffs,
    /// Make our directories.
    MakeDirectories,
    /// Remove what a killed `load` left.
    RemoveLeftover(String),
    /// Load maps and program; those maps that are pinned are used again.
    LoadProgram {
        /// Names of the pinned maps.
        reused: Vec<&'static str>,
        /// What the program logs.
        log: LogLevel,
    },
    /// Go on with the pinned program and maps.
    UsePinned,
    /// Write what the configuration says about ports.
    WritePolicies(Vec<Change>),
    /// Write what is built in and what the configuration says about owners.
    WriteOwners(Vec<OwnerChange>),
    /// Write `SETTINGS`.
    WriteSettings {
        /// What is there, if anything is.
        old: Option<Settings>,
        /// What shall be there.
        new: Settings,
    },
    /// Pin a new map.
    PinMap(&'static str),
    /// Pin the new program beside the old one.
    PinProgram,
    /// Attach a hook to the cgroup and pin its link, in the place of the one that is pinned.
    AttachSocketHook(SocketHook),
    /// Tag the sockets that serve and were bound before the hooks were there.
    TagSockets(BTreeMap<Owner, OwnerPolicy>),
    /// Attach the program: a new tcx link, first in the chain, pinned.
    AttachLink,
    /// Replace the program in the pinned link, in one stroke.
    ReplaceInLink {
        /// The id of the program that is in it.
        old: u32,
    },
    /// Make a clsact qdisc.
    AddClsact,
    /// Add our `cls_bpf` filter.
    AddFilter,
    /// Replace the program in our filter, in one stroke.
    ReplaceInFilter {
        /// The id of the program that is in it.
        old: u32,
    },
    /// Put the new program's pin in the place of the old one's.
    SwapProgramPin,
    /// Write what the machine's rules say of ports.
    WriteRules(Vec<RuleChange>),
    /// Prepare the machine for delivery by `lo`; if that fails, the plain way is taken.
    PrepareDelivery(delivery::Change),
    /// Take away what no packet needs any more.
    CleanUp(delivery::Change),
}

/// A port's entry in `PORT_POLICY`, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The port.
    pub key: PortKey,
    /// What is there.
    pub old: PortPolicy,
    /// What shall be there.
    pub new: PortPolicy,
}

/// What `PORT_DELIVERY` says of the rules for a port, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleChange {
    /// The port.
    pub key: PortKey,
    /// What is there.
    pub old: Option<PortRule>,
    /// What shall be there.
    pub new: Option<PortRule>,
}

/// An owner's entry in `OWNERS`, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerChange {
    /// Whom it is about.
    pub owner: Owner,
    /// What is there.
    pub old: Option<OwnerPolicy>,
    /// What shall be there.
    pub new: Option<OwnerPolicy>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MountBpffs => write!(f, "mount bpffs at {}, for root only", bpffs::ROOT),
            Self::MakeDirectories => write!(f, "make {}", pins::directory().display()),
            Self::RemoveLeftover(name) => {
                write!(f, "remove {}, left by a killed load", pins::path(name).display())
            }
            Self::LoadProgram { reused, .. } if reused.is_empty() => {
                f.write_str("load the program with new maps")
            }
            Self::LoadProgram { reused, .. } => {
                write!(f, "load the program with the pinned maps {}", reused.join(", "))
            }
            Self::UsePinned => f.write_str("go on with the pinned program and its maps"),
            Self::WritePolicies(changes) => write!(f, "write {} ports to PORT_POLICY", changes.len()),
            Self::WriteRules(changes) => write!(
                f,
                "write to PORT_DELIVERY what the machine's rules say of {} ports: {} they keep to lo, {} they close",
                changes.len(),
                changes.iter().filter(|change| change.new == Some(PortRule::NotOnLo)).count(),
                changes.iter().filter(|change| change.new == Some(PortRule::Closed)).count()
            ),
            Self::WriteOwners(changes) => write!(f, "write {} owners to OWNERS", changes.len()),
            Self::WriteSettings { new, .. } => write!(
                f,
                "write SETTINGS: mark {:#x}, default {}, delivery {}",
                new.mark,
                Policy::from_byte(u8::try_from(new.default_policy).unwrap_or_default()).name(),
                if new.lo_ifindex == 0 { "plain" } else { "by lo where nothing else helps" }
            ),
            Self::PinMap(name) => write!(f, "pin the map {name}"),
            Self::PinProgram => {
                write!(f, "pin the new program as {}", pins::path_of_new(pins::PROGRAM).display())
            }
            Self::AttachSocketHook(hook) => {
                write!(f, "attach {} to the cgroup, and pin the link as {}", hook.program(), hook.pin())
            }
            Self::TagSockets(_) => f.write_str("tag the sockets that serve by the processes that hold them"),
            Self::AttachLink => {
                f.write_str("attach the program by a tcx link, first on ingress, and pin the link")
            }
            Self::ReplaceInLink { .. } => f.write_str("replace the program in the pinned link"),
            Self::AddClsact => f.write_str("make a clsact qdisc"),
            Self::AddFilter => f.write_str("attach the program as a cls_bpf filter on ingress"),
            Self::ReplaceInFilter { .. } => f.write_str("replace the program in our cls_bpf filter"),
            Self::SwapProgramPin => write!(f, "rename that pin to {}", pins::path(pins::PROGRAM).display()),
            Self::PrepareDelivery(change) | Self::CleanUp(change) => change.fmt(f),
        }
    }
}

/// Computes the steps from `state` to what `config` wants, with a program and hooks of this release in the place of those
/// that are there. Without the interface, all but attaching.
pub fn plan(state: &State, config: &Config) -> Result<Vec<Step>> {
    Ok(whole(state, config, &Aim::new(state, config, Marks::MustBeFree)?))
}

/// The same for whoever stays after a [`plan`].
pub fn renewal(state: &State, config: &Config) -> Result<Vec<Step>> {
    Ok(whole(state, config, &Aim::new(state, config, Marks::MayBeKept)?))
}

fn whole(state: &State, config: &Config, aim: &Aim) -> Vec<Step> {
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
    steps.extend(aim.writes(state, config));
    steps.extend(fresh.into_iter().map(Step::PinMap));
    // In this order no socket is missed: from here on the hooks tag what is bound, then what was there is tagged, and
    // only then somebody asks.
    steps.extend(SocketHook::ALL.map(Step::AttachSocketHook));
    steps.push(Step::TagSockets(config.owner_policies()));
    steps.push(Step::PinProgram);
    if aim.adds_clsact {
        steps.push(Step::AddClsact);
    }
    if state.interface.index != 0 {
        steps.push(match (aim.hook, linked_here(state), state.interface.clsact.our_program) {
            (Hook::Tcx, Some(old), _) => Step::ReplaceInLink { old },
            (Hook::Tcx, None, _) => Step::AttachLink,
            (Hook::ClsBpf, _, Some(old)) => Step::ReplaceInFilter { old },
            (Hook::ClsBpf, _, None) => Step::AddFilter,
        });
    }
    steps.push(Step::SwapProgramPin);
    steps.extend(aim.delivery.after.iter().copied().map(Step::CleanUp));
    steps
}

/// Computes the steps that are missing, for whoever stays after a [`plan`]: what is pinned is gone on with if all of it is
/// there. No steps mean that everything is as it should be.
pub fn difference(state: &State, config: &Config) -> Result<Vec<Step>> {
    let aim = Aim::new(state, config, Marks::MayBeKept)?;
    if !is_whole(state) {
        return Ok(whole(state, config, &aim));
    }
    let mut steps = aim.writes(state, config);
    if aim.adds_clsact {
        steps.push(Step::AddClsact);
    }
    if state.interface.index != 0 {
        match (aim.hook, linked_here(state), state.interface.clsact.our_program) {
            (Hook::Tcx, Some(_), _) => {}
            (Hook::Tcx, None, _) => steps.push(Step::AttachLink),
            (Hook::ClsBpf, _, Some(there)) if state.pinned_program == Some(there) => {}
            (Hook::ClsBpf, _, Some(old)) => steps.push(Step::ReplaceInFilter { old }),
            (Hook::ClsBpf, _, None) => steps.push(Step::AddFilter),
        }
    }
    steps.extend(aim.delivery.after.into_iter().map(Step::CleanUp));
    if !steps.is_empty() {
        steps.insert(0, Step::UsePinned);
    }
    Ok(steps)
}

impl Step {
    /// Whether it puts back what somebody has taken away, if it is part of a [`difference`] on the interface that is
    /// steered. That makes everything anew where a pin or a hook is missing.
    pub const fn is_repair(&self) -> bool {
        matches!(
            self,
            Self::PrepareDelivery(_)
                | Self::LoadProgram { .. }
                | Self::AttachLink
                | Self::AddClsact
                | Self::AddFilter
                | Self::ReplaceInFilter { .. }
        )
    }
}

/// What of a [`difference`] can be done without the repairs that are part of it: what is written of ports and owners.
/// `SETTINGS` says what the machine is prepared for, and waits with them.
pub fn without_repairs(steps: Vec<Step>) -> Vec<Step> {
    if !steps.iter().any(Step::is_repair) {
        return steps;
    }
    let is_written =
        |step: &Step| matches!(step, Step::WritePolicies(_) | Step::WriteOwners(_) | Step::WriteRules(_));
    let uses_pinned = steps.first() == Some(&Step::UsePinned);
    let mut written: Vec<Step> = steps.into_iter().filter(|step| uses_pinned && is_written(step)).collect();
    if !written.is_empty() {
        written.insert(0, Step::UsePinned);
    }
    written
}

/// Whether everything is pinned and at work that a load pins, but for the link, which is made where there is an
/// interface.
fn is_whole(state: &State) -> bool {
    let hooks = SocketHook::ALL.map(SocketHook::pin);
    state.has_bpffs
        && state.pins.leftovers.is_empty()
        && state.detached_hooks.is_empty()
        && state.pins.has(pins::PROGRAM)
        && MAPS.iter().chain(&hooks).all(|name| state.pins.has(name))
        && state.settings.is_some_and(|settings| settings.layout == LAYOUT)
}

/// Which bits of the mark will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marks {
    /// Only those that nobody else uses.
    MustBeFree,
    /// Those that are in force too: flows carry them, and the program steers with them whether we look after it or not.
    MayBeKept,
}

/// What both plans aim at.
struct Aim {
    hook: Hook,
    adds_clsact: bool,
    settings: Settings,
    delivery: delivery::Plan,
}

impl Aim {
    /// Fails where the machine or what is loaded forbids it.
    fn new(state: &State, config: &Config, marks: Marks) -> Result<Self> {
        let hook = choose_hook(state, config)?;
        refuse_anothers_interface(state)?;
        refuse_second_interface(state, hook)?;
        if hook == Hook::ClsBpf && state.interface.clsact.our_place_is_taken {
            return Err(Failure::new(
                Exit::Kernel,
                format!(
                    "somebody else has a tc filter where ours has to be on {name}, at priority {priority} of \
                     ingress: look at it with `tc filter show dev {name} ingress`, and give it another priority",
                    name = state.interface.name,
                    priority = FILTER_PRIORITY
                ),
            ));
        }
        let is_there = state.interface.index != 0;
        let adds_clsact = is_there && hook == Hook::ClsBpf && !state.interface.clsact.exists;
        let mark = choose_mark(state, config, marks)?;
        let delivery = if is_there {
            delivery::plan(&state.delivery, config.delivery, mark)
        } else {
            // Nothing comes by `lo` now. What is there stays for the interface that comes back; for one that never
            // comes, nothing is made.
            let before = state.settings.map_or(0, |settings| settings.lo_ifindex);
            delivery::Plan { lo_ifindex: before, ..delivery::Plan::default() }
        };
        let settings =
            Settings { mark, lo_ifindex: delivery.lo_ifindex, ..settings(state, config, hook, adds_clsact) };
        Ok(Self { hook, adds_clsact, settings, delivery })
    }

    /// What has to be written so that maps and machine are as they should be.
    fn writes(&self, state: &State, config: &Config) -> Vec<Step> {
        let mut steps = Vec::new();
        let changes = policy_changes(&state.policies, &config.exempt_keys());
        if !changes.is_empty() {
            steps.push(Step::WritePolicies(changes));
        }
        let changes = owner_changes(&state.owners, &config.owner_policies());
        if !changes.is_empty() {
            steps.push(Step::WriteOwners(changes));
        }
        steps.extend(rule_changes(state));
        let before = &self.delivery.before;
        steps.extend(before.iter().copied().map(Step::PrepareDelivery));
        // What cannot be prepared will have to be written there too.
        if state.settings != Some(self.settings) || !before.is_empty() {
            steps.push(Step::WriteSettings { old: state.settings, new: self.settings });
        }
        steps
    }
}

/// Two programs on one interface would do everything twice, and each would undo what the other needs.
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

/// The bits of the mark: those of the configuration, or the first that nobody uses.
fn choose_mark(state: &State, config: &Config, marks: Marks) -> Result<u32> {
    let uses = state.delivery.marks();
    let in_force = mark_in_force(state).filter(|_| marks == Marks::MayBeKept);
    let Some(mark) = config.mark else {
        // Of what could not be read nobody knows which bits it uses.
        let is_good = |mark: &u32| state.delivery.firewall.has_gaps && marks::users(*mark, &uses).is_empty();
        let chosen = in_force.filter(is_good).or_else(|| marks::first_free(&uses)).or(in_force);
        return chosen.ok_or_else(|| {
            let users = marks::names(&marks::users(u32::MAX, &uses));
            Failure::new(
                Exit::Config,
                format!("every bit of skb->mark that could be ours is in use ({users}): name one in the configuration"),
            )
        });
    };
    let users = marks::users(mark, &uses);
    if users.is_empty() || in_force == Some(mark) {
        return Ok(mark);
    }
    Err(Failure::new(
        Exit::Config,
        format!(
            "the configuration says mark = {mark:#x}, but on this machine that is in use, nothing was changed: {}. \
             Name other bits, or say \"auto\"; a rule that is meant for steered packets needs a comment that begins \
             with \"wsl-mirror\"",
            marks::names(&users)
        ),
    ))
}

fn mark_in_force(state: &State) -> Option<u32> {
    state
        .settings
        .filter(|settings| settings.layout == LAYOUT && settings.mark != 0)
        .map(|settings| settings.mark)
}

/// What is to be said of a mark that [`difference`] goes on with although somebody else has begun to use it.
pub fn shared_mark(state: &State, config: &Config) -> Option<String> {
    let uses = state.delivery.marks();
    let mark = choose_mark(state, config, Marks::MayBeKept).ok()?;
    let users = marks::users(mark, &uses);
    (!users.is_empty()).then(|| {
        format!(
            "others use bits of our mark {mark:#x}, too: {}. It stays in force until the configuration names other bits \
             (or, if it says \"auto\", until one is free)",
            marks::names(&users)
        )
    })
}

/// The program that the pinned link holds on the interface that is asked for. A link whose interface went away
/// can still be opened; one of an older interface of the same name too.
fn linked_here(state: &State) -> Option<u32> {
    let on_interface = state.interface.tcx_programs.as_ref()?;
    state.linked_program.filter(|linked| on_interface.contains(linked))
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

/// All but what [`plan`] has found out about mark and delivery.
fn settings(state: &State, config: &Config, hook: Hook, adds_clsact: bool) -> Settings {
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
        mark: 0,
        default_policy: Policy::from(config.default) as u32,
        hook: hook as u32,
        ifindex: index,
        clsact_ifindex: if adds_clsact || (hook == Hook::ClsBpf && made_before) { index } else { 0 },
        interface,
        lo_ifindex: 0,
    }
}

/// What has to change so that the `config` field of every port is what the file says, and nothing else.
fn policy_changes(there: &BTreeMap<PortKey, PortPolicy>, exempt: &BTreeSet<PortKey>) -> Vec<Change> {
    let known = there.keys().copied().chain(exempt.iter().copied()).collect::<BTreeSet<_>>();
    known
        .into_iter()
        .filter_map(|key| {
            let old = there.get(&key).copied().unwrap_or_default();
            let config = if exempt.contains(&key) { Policy::Pass } else { Policy::Unset };
            let new = PortPolicy { config: config as u8, ..old };
            (new != old).then_some(Change { key, old, new })
        })
        .collect()
}

/// What has to change so that `PORT_DELIVERY` says what the machine's rules do. What some of them said before, which could
/// not be read now, is left.
fn rule_changes(state: &State) -> Option<Step> {
    let drops = state.delivery.firewall.drops(&state.interface.name);
    let wanted: BTreeMap<PortKey, PortRule> = drops
        .iter()
        .flat_map(|drop| drop.ports.clone().map(|port| (PortKey::new(drop.protocol, port), drop.rule)))
        .filter(|(key, _)| key.is_valid())
        .collect();
    let known = state.rules.keys().chain(wanted.keys()).copied().collect::<BTreeSet<_>>();
    let changes: Vec<_> = known
        .into_iter()
        .map(|key| RuleChange { key, old: state.rules.get(&key).copied(), new: wanted.get(&key).copied() })
        .filter(|change| change.old != change.new)
        .filter(|change| change.new.is_some() || !state.delivery.firewall.has_gaps)
        .collect();
    (!changes.is_empty()).then_some(Step::WriteRules(changes))
}

/// What has to change so that `OWNERS` says this, and nothing else.
fn owner_changes(
    there: &BTreeMap<Owner, OwnerPolicy>,
    wanted: &BTreeMap<Owner, OwnerPolicy>,
) -> Vec<OwnerChange> {
    let known = there.keys().chain(wanted.keys()).copied().collect::<BTreeSet<_>>();
    known
        .into_iter()
        .map(|owner| OwnerChange { owner, old: there.get(&owner).copied(), new: wanted.get(&owner).copied() })
        .filter(|change| change.old != change.new)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::exit::exit_of;
    use wsl_mirror_core::abi::Protocol;

    fn fresh() -> State {
        State {
            has_bpffs: true,
            interface: Interface {
                name: "loopback0".into(),
                index: 7,
                tcx_programs: Some(Vec::new()),
                clsact: Clsact::default(),
            },
            delivery: delivery::tests::ready(),
            ..State::default()
        }
    }

    fn loaded() -> State {
        let config = Config::default();
        let mut state = fresh();
        state.settings =
            Some(Settings { mark: 0x1000, lo_ifindex: 1, ..settings(&state, &config, Hook::Tcx, false) });
        state.delivery = delivery::tests::loaded();
        state.pins = Pins {
            has_directory: true,
            has_layout: true,
            names: MAPS
                .iter()
                .copied()
                .chain([pins::PROGRAM, pins::LINK])
                .chain(SocketHook::ALL.map(SocketHook::pin))
                .map(str::to_owned)
                .collect(),
            leftovers: Vec::new(),
        };
        state.owners = config.owner_policies();
        state.linked_program = Some(42);
        state.pinned_program = Some(42);
        state.interface.tcx_programs = Some(vec![42, 99]);
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
        assert_eq!(steps[steps.len() - 2..], [Step::AttachLink, Step::SwapProgramPin]);
    }

    /// The same after `loopback0` has gone.
    fn without_interface(mut state: State) -> State {
        state.interface = Interface { tcx_programs: Some(Vec::new()), index: 0, ..state.interface };
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
        state.interface.tcx_programs = Some(Vec::new());
        state.steered_is_alive = false;
        let steps = difference(&state, &Config::default()).unwrap();
        let new = Settings { ifindex: 8, ..state.settings.unwrap() };
        assert_eq!(
            steps,
            [Step::UsePinned, Step::WriteSettings { old: state.settings, new }, Step::AttachLink]
        );
        state.interface.tcx_programs = None;
        state.settings = state.settings.map(|settings| Settings { hook: Hook::ClsBpf as u32, ..settings });
        let steps = difference(&state, &Config::default()).unwrap();
        assert_eq!(steps[2..], [Step::AddClsact, Step::AddFilter]);
    }

    #[test]
    fn without_the_interface_all_is_loaded_and_nothing_attached_nor_prepared() {
        let steps = plan(&without_interface(fresh()), &Config::default()).unwrap();
        assert_eq!(steps.last(), Some(&Step::SwapProgramPin));
        assert!(steps.contains(&Step::AttachSocketHook(SocketHook::Bind4)), "no socket is missed meanwhile");
        let forbidden = |step: &&Step| {
            matches!(step, Step::AttachLink | Step::AddFilter | Step::AddClsact | Step::PrepareDelivery(_))
        };
        assert_eq!(steps.iter().find(forbidden), None);
        // Of one that has gone, everything waits for it to come back.
        assert_eq!(difference(&without_interface(loaded()), &Config::default()).unwrap(), []);
    }

    #[test]
    fn a_rule_that_somebody_took_away_is_the_whole_difference() {
        let mut state = loaded();
        state.delivery.machine.as_mut().unwrap().rules.clear();
        let steps = difference(&state, &Config::default()).unwrap();
        assert_eq!(steps[..2], [Step::UsePinned, Step::PrepareDelivery(delivery::Change::AddRule(0x1000))]);
        assert_eq!(steps.len(), 3, "and the settings once more, in case it cannot be added: {steps:?}");
    }

    #[test]
    fn where_a_pin_is_missing_or_left_over_everything_is_loaded_again() {
        let mut missing = loaded();
        missing.pins.names.retain(|name| name != "FLOWS");
        let mut left_over = loaded();
        left_over.pins.leftovers.push("program_new".into());
        for state in [missing, left_over] {
            let config = Config::default();
            assert_eq!(difference(&state, &config).unwrap(), plan(&state, &config).unwrap());
        }
    }

    #[test]
    fn what_another_distribution_steers_is_left_to_it() {
        let state =
            State { steered_by_others: Some(Found { ifindex: 7, hook: Hook::Tcx, program: 99 }), ..fresh() };
        for plan in [plan, renewal, difference] {
            let error = plan(&state, &Config::default()).unwrap_err();
            assert_eq!(exit_of(&error), Exit::OtherDistribution);
            assert!(error.to_string().contains("program 99, tcx"), "{error}");
        }
    }

    #[test]
    fn a_second_load_keeps_the_maps_and_replaces_the_program_in_the_link() {
        let steps = plan(&loaded(), &Config::default()).unwrap();
        let mut expected = vec![Step::LoadProgram { reused: MAPS.to_vec(), log: LogLevel::Off }];
        expected.extend(SocketHook::ALL.map(Step::AttachSocketHook));
        expected.extend([
            Step::TagSockets(Config::default().owner_policies()),
            Step::PinProgram,
            Step::ReplaceInLink { old: 42 },
            Step::SwapProgramPin,
        ]);
        assert_eq!(steps, expected);
    }

    #[test]
    fn sockets_are_tagged_after_the_hooks_are_there_and_before_anybody_asks() {
        for state in [fresh(), loaded()] {
            let steps = plan(&state, &Config::default()).unwrap();
            let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
            let last_hook = at(&|step| *step == Step::AttachSocketHook(SocketHook::Name6));
            let tagged = at(&|step| matches!(step, Step::TagSockets(_)));
            let asked = at(&|step| matches!(step, Step::AttachLink | Step::ReplaceInLink { .. }));
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
        state.interface.tcx_programs = Some(vec![99]);
        state.steered_is_alive = false;
        let steps = plan(&state, &Config::default()).unwrap();
        assert!(steps.contains(&Step::AttachLink), "{steps:?}");
        assert!(steps.iter().any(|s| matches!(s, Step::WriteSettings { new, .. } if new.ifindex == 8)));
    }

    #[test]
    fn a_second_interface_is_refused_while_the_first_one_is_steered() {
        let mut state = loaded();
        state.interface.name = "eth0".into();
        state.interface.index = 9;
        state.interface.tcx_programs = Some(Vec::new());
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
        assert_eq!(steps[steps.len() - 3..], [Step::AddClsact, Step::AddFilter, Step::SwapProgramPin]);
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
        second.delivery = delivery::tests::loaded();
        second.settings =
            Some(Settings { mark: 0x1000, lo_ifindex: 1, ..settings(&second, &config, Hook::ClsBpf, true) });
        second.interface.clsact.our_program = Some(42);
        let steps = plan(&second, &config).unwrap();
        assert!(steps.contains(&Step::ReplaceInFilter { old: 42 }));
        assert_eq!(made_by(steps), None, "nothing to write: it stands there");
    }

    #[test]
    fn a_place_that_somebody_else_has_taken_is_refused_only_where_it_is_needed() {
        let mut state = fresh();
        state.interface.clsact = Clsact { exists: true, our_place_is_taken: true, ..Clsact::default() };
        let config = Config { hook: HookChoice::ClsBpf, ..Config::default() };
        assert_eq!(exit_of(&plan(&state, &config).unwrap_err()), Exit::Kernel);
        assert!(plan(&state, &Config::default()).is_ok());
    }

    /// A rule of somebody else's that looks at these bits, among those of an iptables.
    fn used_by_others(state: &mut State, bits: u32) {
        let firewall = Arc::make_mut(&mut state.delivery.firewall);
        firewall.ruleset.marks.push(crate::host::marks::MarkUse { bits, by: "their rule".into() });
    }

    #[test]
    fn the_machine_is_prepared_before_the_program_is_told_and_cleaned_up_last() {
        let steps = plan(&fresh(), &Config::default()).unwrap();
        let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
        let (prepared, told) = (
            at(|step| matches!(step, Step::PrepareDelivery(_))),
            at(|step| matches!(step, Step::WriteSettings { new, .. } if new.lo_ifindex == 1)),
        );
        assert!(at(|step| matches!(step, Step::LoadProgram { .. })) < prepared && prepared < told);
        let plain = Config { delivery: crate::config::DeliveryChoice::Plain, ..Config::default() };
        let steps = plan(&loaded(), &plain).unwrap();
        let told = steps
            .iter()
            .position(|step| matches!(step, Step::WriteSettings { new, .. } if new.lo_ifindex == 0));
        let swapped = steps.iter().position(|step| *step == Step::SwapProgramPin);
        assert!(
            told < swapped && matches!(steps.last(), Some(Step::CleanUp(delivery::Change::Erase(_)))),
            "{steps:?}"
        );
    }

    #[test]
    fn a_bit_in_use_is_refused_if_it_is_configured_and_moved_away_from_if_not() {
        let mark_of = |state: &State, mark| {
            let steps = plan(state, &Config { mark, ..Config::default() })?;
            anyhow::Ok(steps.iter().find_map(|step| match step {
                Step::WriteSettings { new, .. } => Some(new.mark),
                _ => None,
            }))
        };
        let mut state = fresh();
        used_by_others(&mut state, 0x3000);
        assert_eq!(mark_of(&state, None).unwrap(), Some(0x0100_0000));
        assert_eq!(mark_of(&state, Some(0x80)).unwrap(), Some(0x80));
        let error = mark_of(&state, Some(0x2080)).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Config);
        assert!(error.to_string().contains("0x2080") && error.to_string().contains("their rule"), "{error}");
        // Our own rule of an earlier load is not somebody else's.
        assert_eq!(mark_of(&loaded(), None).unwrap(), None, "nothing to write: it stands there");
        used_by_others(&mut state, u32::MAX);
        assert_eq!(exit_of(&mark_of(&state, None).unwrap_err()), Exit::Config);
    }

    #[test]
    fn a_mark_in_force_that_somebody_begins_to_use_is_kept_by_who_stays_and_refused_to_who_loads() {
        let config = Config { mark: Some(0x1000), ..Config::default() };
        let mut state = loaded();
        assert_eq!(shared_mark(&state, &config), None);
        used_by_others(&mut state, 0x1000);
        assert_eq!(difference(&state, &config).unwrap(), [], "all goes on");
        assert!(shared_mark(&state, &config).unwrap().contains("their rule"));
        state.pins.names.retain(|name| name != "FLOWS");
        assert!(difference(&state, &config).is_ok() && renewal(&state, &config).is_ok());
        assert_eq!(exit_of(&plan(&state, &config).unwrap_err()), Exit::Config);
        let other = Config { mark: Some(0x3000), ..Config::default() };
        assert_eq!(exit_of(&difference(&state, &other).unwrap_err()), Exit::Config, "it is not in force");
        // Left to us, another bit is taken; if there is none, this one is kept.
        let state = loaded();
        let mut taken = state.clone();
        used_by_others(&mut taken, 0x1000);
        assert_ne!(difference(&taken, &Config::default()).unwrap(), []);
        assert_eq!(shared_mark(&taken, &Config::default()), None);
        let mut full = state;
        used_by_others(&mut full, u32::MAX);
        assert_eq!(difference(&full, &Config::default()).unwrap(), []);
        assert!(shared_mark(&full, &Config::default()).is_some());
    }

    #[test]
    fn what_packet_filters_said_before_is_not_forgotten_because_they_could_not_be_read() {
        let mut state = loaded();
        state.rules.insert(PortKey::new(Protocol::Tcp, 8090), PortRule::NotOnLo);
        state.settings = state.settings.map(|settings| Settings { mark: 0x0100_0000, ..settings });
        state.delivery.machine.as_mut().unwrap().rules = vec![delivery::rule::Rule::ours(0x0100_0000)];
        Arc::make_mut(&mut state.delivery.firewall).has_gaps = true;
        assert_eq!(
            difference(&state, &Config::default()).unwrap(),
            [],
            "nor who used the first bit of the list"
        );
        Arc::make_mut(&mut state.delivery.firewall).has_gaps = false;
        let steps = difference(&state, &Config::default()).unwrap();
        assert!(steps.iter().any(|step| matches!(step, Step::WriteRules(_))), "{steps:?}");
    }

    #[test]
    fn a_hook_that_is_detached_makes_all_anew() {
        let mut state = loaded();
        state.detached_hooks.push(SocketHook::Bind4);
        let steps = difference(&state, &Config::default()).unwrap();
        assert!(steps.contains(&Step::AttachSocketHook(SocketHook::Bind4)), "{steps:?}");
    }

    #[test]
    fn without_repairs_only_what_is_written_of_ports_and_owners_is_done() {
        let mut state = loaded();
        state.delivery.machine.as_mut().unwrap().rules.clear();
        let steps = difference(&state, &Config::default()).unwrap();
        assert_eq!(without_repairs(steps), []);
        state.rules.insert(PortKey::new(Protocol::Tcp, 8090), PortRule::NotOnLo);
        let steps = without_repairs(difference(&state, &Config::default()).unwrap());
        assert!(matches!(steps.as_slice(), [Step::UsePinned, Step::WriteRules(_)]), "{steps:?}");
        state.delivery = delivery::tests::loaded();
        let steps = difference(&state, &Config::default()).unwrap();
        assert_eq!(without_repairs(steps.clone()), steps, "nothing is repaired");
        state.pins.names.clear();
        assert_eq!(without_repairs(difference(&state, &Config::default()).unwrap()), []);
    }

    #[test]
    fn the_file_changes_its_own_field_only() {
        let key = |port| PortKey::new(Protocol::Tcp, port);
        let there = BTreeMap::from([
            (key(1), PortPolicy { cli: 1, config: 0 }),
            (key(2), PortPolicy { cli: 1, config: 1 }),
            (key(3), PortPolicy { cli: 0, config: 1 }),
            (key(4), PortPolicy { cli: 0, config: 1 }),
        ]);
        let changes = policy_changes(&there, &BTreeSet::from([key(1), key(4), key(5)]));
        let after: Vec<_> =
            changes.iter().map(|change| (change.key.port, change.new.cli, change.new.config)).collect();
        assert_eq!(after, [(1, 1, 1), (2, 1, 0), (3, 0, 0), (5, 0, 1)]);
    }
}
