//! Reads what is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use aya::programs::ProgramInfo;
use aya::programs::links::{FdLink, PinnedLink};
use wsl_mirror_core::abi::{Hook, Settings};

use super::delivery;
use super::hook::{self, Found};
use super::maps::{DeliveryMap, OwnersMap, PolicyMap, SettingsMap};
use super::owners::SocketHook;
use super::pins::{self, Pins, bpffs};
use super::plan::{Interface, State};
use crate::config::HookChoice;
use crate::exit::{Exit, OrExit as _};
use crate::host::firewall::{self, Firewall};
use crate::host::interface;

/// Reads everything that a plan for the interface `name` depends on; it has to be there.
pub fn read(name: &str, choice: HookChoice) -> Result<State> {
    let index = interface::require_index(name)?;
    read_at(name, index, choice, firewall::read().into())
}

/// The same whether the interface is there or not, with packet filters that were read before.
pub fn read_with(name: &str, choice: HookChoice, firewall: Arc<Firewall>) -> Result<State> {
    let index = interface::find(name)?.unwrap_or(0);
    read_at(name, index, choice, firewall)
}

/// `index` is 0 if there is no such interface.
fn read_at(name: &str, index: u32, choice: HookChoice, firewall: Arc<Firewall>) -> Result<State> {
    let pins = Pins::read()?;
    pins.require_our_layout()?;
    let settings = if pins.has("SETTINGS") { Some(SettingsMap::pinned()?.get()?) } else { None };
    let policies = if pins.has("PORT_POLICY") { PolicyMap::pinned()?.all()? } else { BTreeMap::new() };
    let owners = if pins.has("OWNERS") { OwnersMap::pinned()?.all()? } else { BTreeMap::new() };
    let rules = if pins.has("PORT_DELIVERY") { DeliveryMap::pinned()?.rules() } else { BTreeMap::new() };
    let tcx_programs = match index {
        0 => hook::tcx_programs("lo")?.map(|_| Vec::new()),
        _ => hook::tcx_programs(name)?,
    };
    let asks_for_filter = choice == HookChoice::ClsBpf || tcx_programs.is_none();
    let clsact = if asks_for_filter && index != 0 { hook::clsact(index)? } else { hook::Clsact::default() };
    let linked_program = linked_program(&pins)?;
    let steered_is_alive = match &settings {
        Some(settings) => attachment(settings, linked_program)?.is_alive(),
        None => false,
    };
    let others = others(&our_programs(&pins)?)?;
    Ok(State {
        has_bpffs: bpffs::is_mounted(),
        steered_is_alive,
        delivery: delivery_with(!others.is_empty(), firewall),
        steered_by_others: others.into_iter().find(|found| index != 0 && found.ifindex == index),
        settings,
        policies,
        owners,
        rules,
        detached_hooks: detached_hooks(&pins)?,
        interface: Interface { name: name.to_owned(), index, tcx_programs, clsact },
        pinned_program: pinned_program(&pins)?,
        linked_program,
        pins,
    })
}

/// Reads what delivery by `lo` and the mark depend on. What cannot be read costs us the delivery, not the load.
pub fn delivery_state(own: &[u32]) -> Result<delivery::State> {
    Ok(delivery_with(has_others(own)?, firewall::read().into()))
}

fn delivery_with(has_others: bool, firewall: Arc<Firewall>) -> delivery::State {
    let machine = delivery::Machine::read().map_err(|error| format!("{error:#}"));
    delivery::State { machine, firewall, has_others }
}

/// Whether there is a wsl-mirror on an interface that is not one of this distribution's `own`.
pub fn has_others(own: &[u32]) -> Result<bool> {
    Ok(!others(own)?.is_empty())
}

/// The programs of other distributions, on any interface.
pub fn others(own: &[u32]) -> Result<Vec<Found>> {
    let mut all = hook::programs_of_ours()?;
    all.retain(|found| !own.contains(&found.program) && !found.is_orphan());
    Ok(all)
}

/// The ids of this distribution's programs: the pinned one and the one in the pinned link; more after a load that was
/// killed at the wrong moment.
pub fn our_programs(pins: &Pins) -> Result<Vec<u32>> {
    let mut programs = Vec::from_iter(linked_program(pins)?);
    let left = ProgramInfo::from_pin(pins::path_of_new(pins::PROGRAM));
    programs.extend(left.ok().map(|info| info.id()));
    programs.extend(pinned_program(pins)?);
    Ok(programs)
}

/// The id of the pinned program.
fn pinned_program(pins: &Pins) -> Result<Option<u32>> {
    if !pins.has(pins::PROGRAM) {
        return Ok(None);
    }
    let path = pins::path(pins::PROGRAM);
    let info = ProgramInfo::from_pin(&path)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned program {}", path.display()))?;
    Ok(Some(info.id()))
}

/// The hooks for sockets whose pinned links hang nowhere.
fn detached_hooks(pins: &Pins) -> Result<Vec<SocketHook>> {
    let mut detached = Vec::new();
    for hook in SocketHook::ALL.into_iter().filter(|hook| pins.has(hook.pin())) {
        if hook.is_detached()? {
            detached.push(hook);
        }
    }
    Ok(detached)
}

/// The id of the program in the pinned link.
pub fn linked_program(pins: &Pins) -> Result<Option<u32>> {
    if !pins.has(pins::LINK) {
        return Ok(None);
    }
    let path = pins::path(pins::LINK);
    let link = PinnedLink::from_pin(&path)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned link {}", path.display()))?;
    let info = FdLink::from(link)
        .info()
        .or_exit(Exit::Kernel, || format!("cannot ask about the pinned link {}", path.display()))?;
    Ok(Some(info.program_id()))
}

/// Where the program hangs, according to `SETTINGS` and to the interface itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// The program with this id runs for each packet.
    Alive(u32),
    /// There is no interface of that name any more.
    InterfaceGone,
    /// There is one, but it is another one: it was removed and made again.
    InterfaceMadeAnew,
    /// The interface is the same, but our program is not on it.
    Detached,
}

impl Attachment {
    /// Whether packets are steered.
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Alive(_))
    }
}

/// Asks the interface whether our program is on it.
pub fn attachment(settings: &Settings, linked_program: Option<u32>) -> Result<Attachment> {
    let Some(name) = interface::name(settings.ifindex) else {
        return Ok(match interface::index(settings.interface_name()) {
            Some(_) => Attachment::InterfaceMadeAnew,
            None => Attachment::InterfaceGone,
        });
    };
    let ours = match Hook::from_number(settings.hook) {
        Some(Hook::ClsBpf) => hook::clsact(settings.ifindex)?.our_program,
        Some(Hook::Tcx) | None => {
            let programs = hook::tcx_programs(&name)?.unwrap_or_default();
            linked_program.filter(|linked| programs.contains(linked))
        }
    };
    Ok(ours.map_or(Attachment::Detached, Attachment::Alive))
}

/// The id of the program that runs now, whatever hook it hangs on.
pub fn running_program(pins: &Pins) -> Result<Option<u32>> {
    if !pins.has("SETTINGS") {
        return Ok(None);
    }
    let settings = SettingsMap::pinned()?.get()?;
    Ok(match attachment(&settings, linked_program(pins)?)? {
        Attachment::Alive(program) => Some(program),
        _ => None,
    })
}
