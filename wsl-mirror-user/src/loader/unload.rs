//! Takes away everything that `load` made, and nothing else.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::links::{FdLink, PinnedLink};
use wsl_mirror_core::abi::Hook;

use super::maps::SettingsMap;
use super::owners::{self, SocketHook};
use super::pins::{self, MAPS, Pins, bpffs};
use super::state::{Attachment, attachment, has_others, linked_program, our_programs};
use super::{apply, delivery, hook};
use crate::errors::Errors;
use crate::exit::Exit;
use crate::host::interface;

/// Ends the headline of what `unload` could not do.
const FAILED: &str = "could not be taken away";

/// Takes everything away; goes on after an error and reports every one. Says whether there was anything.
pub fn unload() -> Result<bool> {
    let pins = Pins::read()?;
    let mut errors = Errors::default();
    if pins.is_empty() {
        // A load that was killed early has made nothing but the mount; a distribution that is gone has left the rest.
        let orphans = errors.keep(remove_orphans()).unwrap_or_default();
        let left = errors.keep(tear_delivery_down(&[])).unwrap_or_default();
        let mounted = errors.keep(bpffs::unmount_ours()).unwrap_or_default();
        errors.into_failure(Exit::Kernel, FAILED)?;
        return Ok(orphans || left || mounted);
    }
    let own = our_programs(&pins).unwrap_or_default();
    // What ends the steering first: afterwards nothing depends on the rest.
    if pins.has(pins::LINK) {
        errors.keep(remove_link(&pins));
    }
    if pins.has("SETTINGS") {
        errors.keep(detach_filter());
    }
    // If the steering could not be ended, our own program still needs it.
    let own = if errors.is_empty() { own } else { Vec::new() };
    errors.keep(tear_delivery_down(&own));
    errors.keep(remove_socket_hooks(&pins));
    let rest = MAPS.iter().copied().chain([pins::PROGRAM]).filter(|name| pins.has(name));
    for name in rest.chain(pins.leftovers.iter().map(String::as_str)) {
        errors.keep(apply::remove(&pins::path(name)));
    }
    for (there, path) in
        [(pins.has_layout, pins::directory()), (pins.has_directory, Path::new(pins::DIRECTORY).to_owned())]
    {
        if there {
            let removed = std::fs::remove_dir(&path);
            errors.keep(removed.with_context(|| format!("cannot remove {}", path.display())));
        }
    }
    errors.keep(bpffs::unmount_ours());
    errors.into_failure(Exit::Kernel, FAILED)?;
    Ok(true)
}

/// Removes the pinned link, and waits until it is off the interface.
fn remove_link(pins: &Pins) -> Result<()> {
    let linked = linked_program(pins);
    apply::remove(&pins::path(pins::LINK))?;
    if pins.has("SETTINGS")
        && let Some(program) = linked?
    {
        let steered = SettingsMap::pinned()?.get()?.ifindex;
        if let Some(name) = interface::name(steered) {
            hook::wait_until_off(&name, program)?;
        }
    }
    Ok(())
}

/// Removes the hooks for sockets, and waits until they are off the cgroup.
fn remove_socket_hooks(pins: &Pins) -> Result<()> {
    let mut links = HashSet::new();
    let mut errors = Errors::default();
    for name in SocketHook::ALL.map(SocketHook::pin).into_iter().filter(|name| pins.has(name)) {
        let path = pins::path(name);
        let id = PinnedLink::from_pin(&path).and_then(|link| Ok(FdLink::from(link).info()?.id()));
        links.extend(id.ok());
        errors.keep(apply::remove(&path));
    }
    errors.keep(owners::wait_until_gone(&links));
    errors.into_failure(Exit::Kernel, FAILED)
}

/// Removes the filters that distributions have left which are gone. Says whether there was one.
fn remove_orphans() -> Result<bool> {
    let mut orphans = hook::programs_of_ours()?;
    orphans.retain(hook::Found::is_orphan);
    for name in orphans.iter().filter_map(|orphan| interface::name(orphan.ifindex)) {
        hook::remove_filter(&name)?;
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

/// Removes our `cls_bpf` filter, and the qdisc if we made it and nobody else uses it now.
fn detach_filter() -> Result<()> {
    let settings = SettingsMap::pinned()?.get()?;
    if Hook::from_number(settings.hook) != Some(Hook::ClsBpf) {
        return Ok(());
    }
    if !matches!(attachment(&settings, None)?, Attachment::Alive(_) | Attachment::Detached) {
        return Ok(()); // the interface took both along
    }
    if hook::clsact(settings.ifindex)?.our_program.is_some()
        && let Some(name) = interface::name(settings.ifindex)
    {
        hook::remove_filter(&name)?;
    }
    let left = hook::clsact(settings.ifindex)?;
    if settings.clsact_ifindex == settings.ifindex && left.exists && !left.has_others {
        hook::remove_clsact(settings.ifindex)?;
    }
    Ok(())
}
