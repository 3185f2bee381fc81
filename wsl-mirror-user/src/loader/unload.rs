//! Removes everything that `load` made, and nothing else.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use anyhow::Result;
use wsl_mirror_core::abi::{Carrying, Hook, Settings};

use super::attachments::{self, Direction, InterfaceAttachment};
use super::flows::Flows;
use super::instances::{self, Instance};
use super::pins::{self, MAPS, Pins, bpffs};
use super::state::{Attachment, attachment, others, our_programs};
use super::stop_keeping::stop_keeping;
use super::{cgroup, clsact, maps, source_alias, tcx};
use crate::errors::Errors;
use crate::exit::Exit;
use crate::host::interface;
use crate::notes::Notes;

/// Ends the headline of what `unload` could not do.
const FAILED: &str = "could not be taken away";

/// What `unload` found.
#[derive(Debug, Default)]
pub struct Unloaded {
    /// Whether anything of ours was there.
    pub found: bool,
    /// How many carried flows it ended.
    pub flows: usize,
    /// What went wrong without harm.
    pub notes: Notes,
}

/// Removes everything. An error does not stop it; it reports all of them.
pub fn unload() -> Result<Unloaded> {
    let pins = Pins::read()?;
    let mut errors = Errors::default();
    let had_local_rules = errors.keep(stop_keeping()).unwrap_or_default();
    if pins.is_empty() {
        // A load that was killed early left only the mount. A terminated distribution left the rest.
        let orphans = errors.keep(remove_orphans()).unwrap_or_default();
        let others = others(&[]).and_then(|others| source_alias::remove(&others));
        let routing = errors.keep(others).unwrap_or_default();
        let mounted = errors.keep(bpffs::unmount_ours()).unwrap_or_default();
        errors.into_failure(Exit::Kernel, FAILED)?;
        return Ok(Unloaded {
            found: orphans || routing || had_local_rules || mounted,
            ..Unloaded::default()
        });
    }
    let mut unloaded = Unloaded { found: true, ..Unloaded::default() };
    let has_settings = pins.has("SETTINGS");
    // As long as our own programs can be told from them.
    let others = errors.keep(our_programs(&pins).and_then(|own| others(&own)));
    let aliases = if has_settings { errors.keep(end_flows(&pins, &mut unloaded)).flatten() } else { None };
    // Ingress goes before egress, and both before the rest: without them nothing depends on it.
    for on in detached_in_order() {
        if on.direction == Direction::Egress
            && let Some((alias, source_alias)) = aliases
        {
            // No flow begins any more. Without its entry a listener's packet does not get the alias as its source.
            errors.keep(Flows::read(alias, source_alias).and_then(|flows| flows.delete_entries()));
        }
        if pins.has(on.link_pin) {
            errors.keep(remove_link(&pins, on));
        }
        if has_settings {
            errors.keep(remove_filter(&pins, on));
        }
    }
    if has_settings {
        errors.keep(remove_qdisc(&pins));
    }
    if let Some(others) = others {
        errors.keep(source_alias::remove(&others));
    }
    errors.keep(detach_from_cgroup(&pins));
    let of_udp = attachments::of_udp().map(|udp| udp.program_pin);
    let programs = attachments::on_interface().map(|on| on.program_pin).chain(of_udp);
    let rest = MAPS.into_iter().chain(programs).filter(|name| pins.has(name));
    for name in rest.chain(pins.leftovers.iter().map(String::as_str)) {
        errors.keep(pins::remove(name));
    }
    for path in pins.directories().into_iter().rev() {
        errors.keep(pins::remove_directory(&path));
    }
    errors.keep(bpffs::unmount_ours());
    errors.into_failure(Exit::Kernel, FAILED)?;
    Ok(unloaded)
}

/// Stops carrying and resets the listeners' ends of carried flows, while the egress program still translates the resets.
/// Gives alias and source alias whose entries have to go; none where they stay.
fn end_flows(pins: &Pins, unloaded: &mut Unloaded) -> Result<Option<(Ipv4Addr, Ipv4Addr)>> {
    let notes = &mut unloaded.notes;
    if !others(&our_programs(pins)?)?.is_empty() {
        notes.add("another distribution's programs are attached, and may carry flows: none is ended");
        return Ok(None);
    }
    let mut map = maps::SETTINGS.pinned()?;
    let settings = map.get()?;
    // From here on no flow begins.
    map.set(Settings { carrying: Carrying::Off as u32, ..settings })?;
    let aliases = (settings.alias.into(), settings.source_alias.into());
    let flows = match Flows::read(aliases.0, aliases.1) {
        Ok(flows) => flows,
        // A kernel without ctnetlink. The entries end by themselves.
        Err(error) => {
            notes.add(format!(
                "carried flows are not counted, and stay in conntrack until they expire: {error:#}"
            ));
            return Ok(None);
        }
    };
    if let Err(error) = flows.destroy_sockets() {
        notes.add(format!("some carried connections end only after a timeout: {error:#}"));
    }
    unloaded.flows = flows.count();
    Ok(Some(aliases))
}

/// The programs on the interface in the order in which they are detached.
fn detached_in_order() -> impl Iterator<Item = InterfaceAttachment> {
    let all: Vec<_> = attachments::on_interface().collect();
    all.into_iter().rev()
}

/// Removes a pinned link, and waits until the program is off the interface.
fn remove_link(pins: &Pins, on: InterfaceAttachment) -> Result<()> {
    let linked = pins::program_in_link(on.link_pin);
    pins::remove(on.link_pin)?;
    if pins.has("SETTINGS") {
        let program = linked?;
        let steered = maps::SETTINGS.pinned()?.get()?.ifindex;
        if let Some(name) = interface::name(steered) {
            tcx::wait_until_off(&name, on.direction, program)?;
        }
    }
    Ok(())
}

/// Removes the links on the cgroup, and waits until they are gone.
fn detach_from_cgroup(pins: &Pins) -> Result<()> {
    let mut links = HashSet::new();
    let mut errors = Errors::default();
    let all = attachments::on_cgroup().chain(attachments::of_udp().map(|udp| udp.on));
    for name in all.rev().map(|on| on.link_pin).filter(|name| pins.has(name)) {
        links.extend(pins::link_id(name).ok());
        errors.keep(pins::remove(name));
    }
    errors.keep(cgroup::wait_until_gone(&links));
    errors.into_failure(Exit::Kernel, FAILED)
}

/// Removes the filters that terminated distributions left. Gives whether one was there.
fn remove_orphans() -> Result<bool> {
    let mut orphans = instances::read()?;
    orphans.retain(Instance::is_orphan);
    // Ingress before egress.
    orphans.sort_by_key(|orphan| orphan.direction);
    for orphan in &orphans {
        if let Some(name) = interface::name(orphan.ifindex) {
            clsact::remove_filter(&name, orphan.direction)?;
        }
    }
    Ok(!orphans.is_empty())
}

/// The settings, if our `cls_bpf` filters may still be on the interface: it takes them along when it goes.
fn filtered(pins: &Pins) -> Result<Option<Settings>> {
    let settings = maps::SETTINGS.pinned()?.get()?;
    if Hook::from_number(settings.hook) != Some(Hook::ClsBpf) {
        return Ok(None);
    }
    let is_gone =
        matches!(attachment(&settings, pins)?, Attachment::InterfaceGone | Attachment::InterfaceMadeAnew);
    Ok((!is_gone).then_some(settings))
}

/// Removes our `cls_bpf` filter on this side.
fn remove_filter(pins: &Pins, on: InterfaceAttachment) -> Result<()> {
    let Some(settings) = filtered(pins)? else { return Ok(()) };
    let is_there = clsact::read(settings.ifindex)?.our_programs.contains_key(&on.direction);
    match interface::name(settings.ifindex) {
        Some(name) if is_there => clsact::remove_filter(&name, on.direction),
        _ => Ok(()),
    }
}

/// Removes the qdisc if we made it and nobody else has a filter there.
fn remove_qdisc(pins: &Pins) -> Result<()> {
    let Some(settings) = filtered(pins)? else { return Ok(()) };
    let left = clsact::read(settings.ifindex)?;
    if settings.clsact_ifindex == settings.ifindex && left.exists && !left.has_others {
        clsact::remove(settings.ifindex)?;
    }
    Ok(())
}
