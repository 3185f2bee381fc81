//! Removes everything that `load` made, and nothing else.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use wsl_mirror_core::abi::Hook;

use super::attachments::{self, InterfaceAttachment};
use super::instances::{self, Instance};
use super::pins::{self, MAPS, Pins, bpffs};
use super::state::{Attachment, attachment, has_others, our_programs};
use super::{cgroup, clsact, delivery, maps, tcx};
use crate::errors::Errors;
use crate::exit::Exit;
use crate::host::interface;

/// Ends the headline of what `unload` could not do.
const FAILED: &str = "could not be taken away";

/// Removes everything. An error does not stop it; it reports all of them. Gives whether anything was there.
pub fn unload() -> Result<bool> {
    let pins = Pins::read()?;
    let mut errors = Errors::default();
    if pins.is_empty() {
        // A load that was killed early left only the mount. A terminated distribution left the rest.
        let orphans = errors.keep(remove_orphans()).unwrap_or_default();
        let left = errors.keep(tear_delivery_down(&[])).unwrap_or_default();
        let mounted = errors.keep(bpffs::unmount_ours()).unwrap_or_default();
        errors.into_failure(Exit::Kernel, FAILED)?;
        return Ok(orphans || left || mounted);
    }
    let own = our_programs(&pins).unwrap_or_default();
    // First the programs on the interface: without them nothing depends on the rest.
    for on in attachments::on_interface().filter(|on| pins.has(on.link_pin)) {
        errors.keep(remove_link(&pins, on));
    }
    if pins.has("SETTINGS") {
        errors.keep(remove_filters(&pins));
    }
    // If our program could not be detached, it still needs delivery by `lo`.
    let own = if errors.is_empty() { own } else { Vec::new() };
    errors.keep(tear_delivery_down(&own));
    errors.keep(detach_from_cgroup(&pins));
    let programs = attachments::on_interface().map(|on| on.program_pin);
    let rest = MAPS.into_iter().chain(programs).filter(|name| pins.has(name));
    for name in rest.chain(pins.leftovers.iter().map(String::as_str)) {
        errors.keep(pins::remove(name));
    }
    for path in pins.directories().into_iter().rev() {
        errors.keep(pins::remove_directory(&path));
    }
    errors.keep(bpffs::unmount_ours());
    errors.into_failure(Exit::Kernel, FAILED)?;
    Ok(true)
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
    for name in attachments::on_cgroup().map(|on| on.link_pin).filter(|name| pins.has(name)) {
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
    for orphan in &orphans {
        if let Some(name) = interface::name(orphan.ifindex) {
            clsact::remove_filter(&name, orphan.direction)?;
        }
    }
    Ok(!orphans.is_empty())
}

/// Takes away what delivery by `lo` needs, whichever distribution has made it, unless one still needs it. Says whether
/// there was anything. `gone` are programs that packets do not meet any more, even if they are still listed.
fn tear_delivery_down(gone: &[u32]) -> Result<bool> {
    if has_others(gone)? {
        return Ok(false);
    }
    let mut errors = Errors::default();
    let changes = delivery::teardown(&delivery::Machine::read()?);
    let mut all_well = true;
    for change in &changes {
        // Without its record, what is not put back now would never be.
        if matches!(change, delivery::Change::Erase(_)) && !all_well {
            continue;
        }
        let done = change.carry_out().with_context(|| format!("could not {change}"));
        all_well &= errors.keep(done).is_some();
    }
    errors.into_failure(Exit::Kernel, FAILED).map(|()| !changes.is_empty())
}

/// Removes our `cls_bpf` filters, and the qdisc if we made it and it has no other filter.
fn remove_filters(pins: &Pins) -> Result<()> {
    let settings = maps::SETTINGS.pinned()?.get()?;
    if Hook::from_number(settings.hook) != Some(Hook::ClsBpf) {
        return Ok(());
    }
    if !matches!(attachment(&settings, pins)?, Attachment::Alive(_) | Attachment::Detached) {
        return Ok(()); // The interface took both along.
    }
    for direction in clsact::read(settings.ifindex)?.our_programs.into_keys() {
        if let Some(name) = interface::name(settings.ifindex) {
            clsact::remove_filter(&name, direction)?;
        }
    }
    let left = clsact::read(settings.ifindex)?;
    if settings.clsact_ifindex == settings.ifindex && left.exists && !left.has_others {
        clsact::remove(settings.ifindex)?;
    }
    Ok(())
}
