//! One look at the machine: what is loaded here and where it hangs, what others steer, what the agent reports.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Result;
use aya::programs::{ProgramInfo, loaded_programs};
use wsl_mirror_core::abi::{
    Carrying, ClientOutcome, Hook, LinuxClients, Owner, OwnerPolicy, Path, Policy, PortKey, PortPolicy,
    Verdicts,
};

use super::keeping::Keeping;
use super::listeners::Listener;
use crate::agent::lock;
use crate::agent::report::Report;
use crate::host::firewall::{self, Obstacle};
use crate::host::interface;
use crate::host::lock::{Access, Lock};
use crate::host::networking::NetworkingMode;
use crate::host::routing;
use crate::loader::attachments::Direction;
use crate::loader::instances::Instance;
use crate::loader::maps::{self, PortTraffic};
use crate::loader::pins::Pins;
use crate::loader::source_alias::SourceAlias;
use crate::loader::state::{self, Attachment};
use crate::loader::udp_hooks;
use crate::policy;

/// The machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What this distribution has loaded, if pins of ours are there.
    pub loaded: Option<Loaded>,
    /// The programs of other distributions.
    pub elsewhere: Vec<Elsewhere>,
    /// The report of this distribution's agent, if it runs.
    pub agent: Option<Report>,
}

/// A program of another distribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The interface's name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// How the program is attached.
    pub hook: Hook,
    /// The program's id.
    pub program: u32,
}

/// What this distribution has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where the program hangs.
    pub attachment: Attachment,
    /// The interface's name.
    pub interface: String,
    /// Its index when the program was attached; 0 if it was not there.
    pub ifindex: u32,
    /// The interface's networking mode, as long as the program is attached.
    pub networking: Option<NetworkingMode>,
    /// How the program is attached; nothing if a newer release knows more ways.
    pub hook: Option<Hook>,
    /// What the kernel says about the program.
    pub program: Option<Program>,
    /// The address to which carried flows are sent inside Linux.
    pub alias: Ipv4Addr,
    /// The address from which direct flows come inside Linux, and what there is of its route and rules.
    pub source_alias: SourceAlias,
    /// Whether connections within Linux stay on `lo`.
    pub keeping: Keeping,
    /// Which way flows take to ports whose container is known, unless the port has a path of its own.
    pub path: Path,
    /// Whether flows are carried, as the program was told.
    pub carrying: Carrying,
    /// Whether Linux' own clients are connected to containers, as the programs were told.
    pub linux_clients: LinuxClients,
    /// Whether UDP's hooks are on the cgroup.
    pub has_udp_hooks: bool,
    /// What Linux' own clients got.
    pub clients: BTreeMap<ClientOutcome, u64>,
    /// What keeps flows from being carried now.
    pub obstacles: Vec<Obstacle>,
    /// What of the machine's packet filters could not be read.
    pub unread: Vec<String>,
    /// The bits that carried packets get.
    pub mark: u32,
    /// What ports get about which nothing is written.
    pub default_policy: Policy,
    /// What ports get by their owner.
    pub owners: BTreeMap<Owner, OwnerPolicy>,
    /// What is written about ports, without flags.
    pub policies: BTreeMap<PortKey, PortPolicy>,
    /// The packets of each reason.
    pub verdicts: Verdicts,
    /// What happened on each port.
    pub ports: BTreeMap<PortKey, PortTraffic>,
    /// The sockets that serve, with their targets.
    pub listeners: Vec<Listener>,
}

/// A program, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The hash of its instructions.
    pub tag: u64,
}

impl Snapshot {
    /// Reads the machine, under the lock: a load is seen before or after, not half-way.
    pub fn read(on_wait: fn(&str)) -> Result<Self> {
        let _lock = Lock::take(Access::Shared, on_wait)?;
        let pins = Pins::read()?;
        let others = state::others(&state::our_programs(&pins)?)?;
        let loaded = if pins.has("SETTINGS") { Some(Loaded::read(&pins, &others)?) } else { None };
        let elsewhere = elsewhere(&others);
        Ok(Self { loaded, elsewhere, agent: lock::holder() })
    }

    /// Whether packets are steered, by whichever distribution.
    pub fn is_steering(&self) -> bool {
        match &self.loaded {
            None => !self.elsewhere.is_empty(),
            Some(loaded) => {
                loaded.attachment.is_alive()
                    || self.elsewhere.iter().any(|other| other.interface == loaded.interface)
            }
        }
    }
}

impl Loaded {
    fn read(pins: &Pins, others: &[Instance]) -> Result<Self> {
        pins.require_our_layout()?;
        let settings = maps::SETTINGS.pinned()?.get()?;
        let attachment = state::attachment(&settings, pins)?;
        let firewall = firewall::read();
        let routing = routing::read()?;
        let counts_ports = pins.has("PORT_STATS") && pins.has("PORT_PACKETS");
        Ok(Self {
            interface: settings.interface_name().to_owned(),
            ifindex: settings.ifindex,
            networking: match attachment {
                Attachment::Alive(_) => Some(NetworkingMode::of_interface(settings.ifindex)?),
                _ => None,
            },
            hook: Hook::from_number(settings.hook),
            program: match attachment {
                Attachment::Alive(id) => Program::read(id),
                _ => None,
            },
            alias: settings.alias.into(),
            keeping: Keeping::find(&settings, &routing, &firewall, others),
            source_alias: SourceAlias::find(
                &routing,
                settings.source_alias.into(),
                settings.interface_name(),
                settings.ifindex,
                others,
            ),
            path: Path::from_byte(u8::try_from(settings.path).unwrap_or_default()),
            carrying: Carrying::from_number(settings.carrying),
            linux_clients: LinuxClients::from_number(settings.linux_clients),
            has_udp_hooks: udp_hooks::are_attached(),
            clients: if pins.has("CLIENTS") { maps::clients()? } else { BTreeMap::new() },
            obstacles: firewall.obstacles(settings.interface_name(), settings.alias),
            unread: firewall.unread,
            mark: settings.mark,
            default_policy: Policy::from_byte(u8::try_from(settings.default_policy).unwrap_or_default()),
            // A load that was killed may have left some of the maps unpinned.
            owners: if pins.has("OWNERS") { maps::OWNERS.pinned()?.all()? } else { BTreeMap::new() },
            policies: if pins.has("PORT_POLICY") {
                policy::without_flags(maps::PORT_POLICY.pinned()?.all()?)
            } else {
                BTreeMap::new()
            },
            verdicts: if pins.has("VERDICTS") { maps::verdicts()? } else { Verdicts::default() },
            ports: if counts_ports { maps::port_traffic()? } else { BTreeMap::new() },
            listeners: if pins.has("SOCKET_TARGET") {
                Listener::read_all(&maps::SOCKET_TARGET.pinned()?)?
            } else {
                Vec::new()
            },
            attachment,
        })
    }

    /// How many ports are exempt.
    pub fn exempt_ports(&self) -> usize {
        self.ports_with(|written| written.effective() == Policy::Pass)
    }

    /// Of how many ports something is written.
    pub fn ports_with(&self, is_counted: impl Fn(&PortPolicy) -> bool) -> usize {
        self.policies.values().filter(|written| is_counted(written)).count()
    }
}

impl Program {
    /// What the kernel says about a program; it may have been replaced since its id was read.
    fn read(id: u32) -> Option<Self> {
        let info: ProgramInfo = loaded_programs().flatten().find(|info| info.id() == id)?;
        Some(Self { id, name: info.name_as_str().unwrap_or_default().to_owned(), tag: info.tag() })
    }
}

fn elsewhere(others: &[Instance]) -> Vec<Elsewhere> {
    let on_ingress = others.iter().filter(|found| found.direction == Direction::Ingress);
    let named = on_ingress.filter_map(|found| {
        Some(Elsewhere {
            interface: interface::name(found.ifindex)?,
            ifindex: found.ifindex,
            hook: found.hook,
            program: found.program,
        })
    });
    named.collect()
}

#[cfg(test)]
pub mod tests {
    use wsl_mirror_core::abi::{Protocol, Reason};

    use super::*;
    use crate::loader::local_rules::Kept;
    use crate::loader::source_alias;

    /// What a load on `loopback0` comes to, after three flows to port 8080.
    pub fn loaded() -> Loaded {
        let mut verdicts = Verdicts::default();
        *verdicts.counter(Reason::New) = 3;
        let key = |port| PortKey::new(Protocol::Tcp, port);
        let traffic = PortTraffic {
            steered_flows: 3,
            steered_packets: 30,
            direct_flows: 2,
            direct_packets: 20,
            passed_packets: 1,
            ..PortTraffic::default()
        };
        let exempt = PortPolicy { cli: Policy::Pass as u8, config: 0, ..PortPolicy::default() };
        let forced =
            PortPolicy { cli: Policy::Steer as u8, config: Policy::Pass as u8, ..PortPolicy::default() };
        Loaded {
            attachment: Attachment::Alive(42),
            interface: "loopback0".into(),
            ifindex: 7,
            networking: None,
            hook: Some(Hook::Tcx),
            program: Some(Program { id: 42, name: "wsl_mirror".into(), tag: 0xff }),
            alias: Ipv4Addr::new(127, 119, 0, 1),
            source_alias: source_alias::tests::complete(),
            keeping: Keeping::OnLo(Kept { ports: 44620..=48715, bit: 0x40 }),
            path: Path::Auto,
            carrying: Carrying::On,
            linux_clients: LinuxClients::Translated,
            has_udp_hooks: false,
            clients: BTreeMap::from([(ClientOutcome::Translated, 5), (ClientOutcome::Closed, 0)]),
            obstacles: Vec::new(),
            unread: Vec::new(),
            mark: 0x80,
            default_policy: Policy::Steer,
            owners: BTreeMap::from([(Owner::new(b"docker-proxy", 0), OwnerPolicy::new(Policy::Steer))]),
            policies: BTreeMap::from([(key(22), exempt), (key(23), exempt), (key(24), forced)]),
            verdicts,
            ports: BTreeMap::from([(key(8080), traffic)]),
            listeners: Vec::new(),
        }
    }

    #[test]
    fn another_distribution_steers_the_same_interface_as_well() {
        let elsewhere =
            Elsewhere { interface: "loopback0".into(), ifindex: 9, hook: Hook::ClsBpf, program: 42 };
        let detached = Loaded { attachment: Attachment::Detached, ..loaded() };
        let snapshot = |loaded, elsewhere| Snapshot { loaded, elsewhere, ..Snapshot::default() };
        assert!(!snapshot(None, vec![]).is_steering());
        assert!(snapshot(None, vec![elsewhere.clone()]).is_steering());
        assert!(snapshot(Some(loaded()), vec![]).is_steering());
        assert!(!snapshot(Some(detached.clone()), vec![]).is_steering());
        assert!(snapshot(Some(detached.clone()), vec![elsewhere.clone()]).is_steering());
        let other = Elsewhere { interface: "other".into(), ..elsewhere };
        assert!(!snapshot(Some(detached), vec![other]).is_steering());
    }

    #[test]
    fn exempt_ports_are_those_that_pass_in_the_end() {
        assert_eq!(loaded().exempt_ports(), 2);
    }
}
