//! Reads the state: pins, maps, links, the interface and its hooks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Result;
use wsl_mirror_core::abi::{Hook, Owner, OwnerPolicy, PortKey, PortPolicy, Settings};

use super::attachments::{self, CgroupAttachment, Direction};
use super::clsact::{self, Clsact};
use super::instances::{self, Instance};
use super::local_rules::{Conditions, Filters, Follower, LocalRules};
use super::pins::{self, Pins, bpffs};
use super::source_alias::SourceAlias;
use super::{cgroup, local_addresses, maps, tcx};
use crate::config::{Config, HookChoice};
use crate::host::firewall::{self, Firewall, Obstacle};
use crate::host::{interface, netns, routing};

/// The state that a plan begins with.
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
    /// The attachments to the cgroup whose pinned links hang on none any more (`bpftool link detach`, or it is gone).
    pub detached: Vec<CgroupAttachment>,
    /// The interface that the configuration names.
    pub interface: Interface,
    /// The ids of the pinned programs.
    pub pinned_programs: BTreeMap<Direction, u32>,
    /// The ids of the programs in the pinned links.
    pub linked_programs: BTreeMap<Direction, u32>,
    /// The program of another distribution that is on the interface.
    pub steered_by_others: Option<Instance>,
    /// Whether the interface that is steered according to `SETTINGS` still is the one that was steered then.
    pub steered_is_alive: bool,
    /// The route and the policy route rules of the source alias.
    pub source_alias: SourceAlias,
    /// The policy route rules that keep connections within Linux on `lo`.
    pub local_rules: LocalRules,
    /// This machine's LAN addresses whose clients are translated under an agent.
    pub local_addresses: BTreeSet<[u8; 4]>,
    /// The cookie of the network namespace.
    pub netns_cookie: u64,
    /// The packet filters. Large: an agent reads them once and shares them.
    pub firewall: Arc<Firewall>,
}

impl State {
    /// What keeps flows to this alias, and direct ones from this source alias, from being carried on the interface.
    pub fn obstacles(&self, alias: Ipv4Addr) -> Vec<Obstacle> {
        self.firewall.obstacles(&self.interface.name, alias.octets())
    }
}

/// The interface that the configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index; 0 as long as there is none.
    pub index: u32,
    /// The ids of its tcx programs; `None` if the kernel has no tcx.
    pub tcx_programs: Option<BTreeMap<Direction, Vec<u32>>>,
    /// The older hook; only looked at where it matters.
    pub clsact: Clsact,
}

/// Reads everything that a plan by this configuration depends on; its interface has to be there.
pub fn read(config: &Config, follower: Follower) -> Result<State> {
    let index = interface::require_index(&config.interface)?;
    let firewall = firewall::read();
    let filters = Filters::from(&firewall);
    read_at(config, index, firewall.into(), filters, follower)
}

/// The same for an agent, whether the interface is there or not, with packet filters that were read before. `filters` are
/// of the newest reading.
pub fn read_with(config: &Config, firewall: Arc<Firewall>, filters: Filters) -> Result<State> {
    let index = interface::find(&config.interface)?.unwrap_or(0);
    read_at(config, index, firewall, filters, Follower::Agent)
}

/// `index` is 0 if there is no such interface.
fn read_at(
    config: &Config,
    index: u32,
    firewall: Arc<Firewall>,
    filters: Filters,
    follower: Follower,
) -> Result<State> {
    let name = config.interface.as_str();
    let pins = Pins::read()?;
    pins.require_our_layout()?;
    let settings = if pins.has("SETTINGS") { Some(maps::SETTINGS.pinned()?.get()?) } else { None };
    let policies = if pins.has("PORT_POLICY") { maps::PORT_POLICY.pinned()?.all()? } else { BTreeMap::new() };
    let owners = if pins.has("OWNERS") { maps::OWNERS.pinned()?.all()? } else { BTreeMap::new() };
    let steered_is_alive = match &settings {
        Some(settings) => attachment(settings, &pins)?.is_alive(),
        None => false,
    };
    let others = others(&our_programs(&pins)?)?;
    let routing = routing::read()?;
    let conditions = Conditions {
        switch: config.keep_on_lo,
        carried_mark: config.mark,
        interface: name,
        ifindex: index,
        filters,
        follower,
    };
    Ok(State {
        has_bpffs: bpffs::is_mounted(),
        steered_is_alive,
        netns_cookie: netns::cookie()?,
        firewall,
        source_alias: SourceAlias::find(&routing, config.source_alias, name, index, &others),
        local_addresses: local_addresses::of(&routing),
        local_rules: LocalRules::find(&routing, &conditions, &others),
        steered_by_others: others.into_iter().find(|other| index != 0 && other.ifindex == index),
        settings,
        policies,
        owners,
        detached: detached(&pins)?,
        interface: read_interface(name, index, config.hook)?,
        pinned_programs: pinned_programs(&pins)?,
        linked_programs: linked_programs(&pins)?,
        pins,
    })
}

fn read_interface(name: &str, index: u32, choice: HookChoice) -> Result<Interface> {
    let mut tcx_programs = tcx::is_supported()?.then(BTreeMap::new);
    if let Some(programs) = tcx_programs.as_mut().filter(|_| index != 0) {
        for on in attachments::on_interface() {
            let ids = tcx::program_ids(name, on.direction)?.unwrap_or_default();
            programs.insert(on.direction, ids);
        }
    }
    let needs_filter = choice == HookChoice::ClsBpf || tcx_programs.is_none();
    let clsact = if needs_filter && index != 0 { clsact::read(index)? } else { Clsact::default() };
    Ok(Interface { name: name.to_owned(), index, tcx_programs, clsact })
}

/// The programs of other distributions, on any interface.
pub fn others(own: &[u32]) -> Result<Vec<Instance>> {
    let mut all = instances::read()?;
    all.retain(|instance| !own.contains(&instance.program) && !instance.is_orphan());
    Ok(all)
}

/// The ids of this distribution's programs on interfaces: the pinned ones and those in pinned links. A load that was killed
/// at the wrong moment adds one.
pub fn our_programs(pins: &Pins) -> Result<Vec<u32>> {
    let mut programs: Vec<u32> = linked_programs(pins)?.into_values().collect();
    let left = attachments::on_interface().filter_map(|on| pins::program_info_of_new(on.program_pin));
    programs.extend(left.map(|info| info.id()));
    programs.extend(pinned_programs(pins)?.into_values());
    Ok(programs)
}

/// The ids of the pinned programs.
fn pinned_programs(pins: &Pins) -> Result<BTreeMap<Direction, u32>> {
    let pinned = attachments::on_interface().filter(|on| pins.has(on.program_pin));
    pinned.map(|on| Ok((on.direction, pins::program_info(on.program_pin)?.id()))).collect()
}

/// The ids of the programs in the pinned links.
fn linked_programs(pins: &Pins) -> Result<BTreeMap<Direction, u32>> {
    let linked = attachments::on_interface().filter(|on| pins.has(on.link_pin));
    linked.map(|on| Ok((on.direction, pins::program_in_link(on.link_pin)?))).collect()
}

/// The attachments to the cgroup whose pinned links hang nowhere.
fn detached(pins: &Pins) -> Result<Vec<CgroupAttachment>> {
    let mut detached = Vec::new();
    for on in attachments::on_cgroup().filter(|on| pins.has(on.link_pin)) {
        if cgroup::is_detached(on)? {
            detached.push(on);
        }
    }
    Ok(detached)
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

/// Asks the interface whether our programs are on it, and gives the id of the ingress program.
pub fn attachment(settings: &Settings, pins: &Pins) -> Result<Attachment> {
    let Some(name) = interface::name(settings.ifindex) else {
        return Ok(match interface::index(settings.interface_name()) {
            Some(_) => Attachment::InterfaceMadeAnew,
            None => Attachment::InterfaceGone,
        });
    };
    let attached = match Hook::from_number(settings.hook) {
        Some(Hook::ClsBpf) => clsact::read(settings.ifindex)?.our_programs,
        Some(Hook::Tcx) | None => {
            let mut attached = linked_programs(pins)?;
            for on in attachments::on_interface() {
                let there = tcx::program_ids(&name, on.direction)?.unwrap_or_default();
                attached.retain(|direction, linked| *direction != on.direction || there.contains(linked));
            }
            attached
        }
    };
    let is_whole = attachments::on_interface().all(|on| attached.contains_key(&on.direction));
    let ingress = attached.get(&Direction::Ingress).copied().filter(|_| is_whole);
    Ok(ingress.map_or(Attachment::Detached, Attachment::Alive))
}

/// The id of the ingress program that runs now, whatever hook it hangs on.
pub fn running_program(pins: &Pins) -> Result<Option<u32>> {
    if !pins.has("SETTINGS") {
        return Ok(None);
    }
    let settings = maps::SETTINGS.pinned()?.get()?;
    Ok(match attachment(&settings, pins)? {
        Attachment::Alive(program) => Some(program),
        _ => None,
    })
}
