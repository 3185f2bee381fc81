//! `wsl-mirror status --json`. Fields are added, never renamed or removed.

use std::net::Ipv4Addr;

use serde::Serialize;
use wsl_mirror_core::abi::{Carrying, Hook, LinuxClients, Owner, OwnerPolicy, PortKey, Protocol, Reason};

use super::keeping::KeepOnLo;
use super::targets;
use crate::agent::report::Report as Agent;
use crate::host::networking::NetworkingMode;
use crate::inspect::snapshot::{Elsewhere, Loaded, Program, Snapshot};
use crate::loader::maps::PortTraffic;
use crate::loader::state::Attachment;

/// What is printed.
#[derive(Debug, Serialize)]
pub struct Status<'a> {
    /// Whether pins of ours are there.
    loaded: bool,
    /// Whether packets are steered.
    steering: bool,
    #[serde(flatten)]
    details: Option<Details<'a>>,
    /// What other distributions steer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    elsewhere: Vec<Other<'a>>,
    /// `wsl-mirror run`, if it is at work in this distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a Agent>,
}

/// A program of another distribution.
#[derive(Debug, Serialize)]
struct Other<'a> {
    interface: &'a str,
    ifindex: u32,
    /// `tcx` or `cls_bpf`.
    hook: &'static str,
    program: u32,
}

#[derive(Debug, Serialize)]
struct Details<'a> {
    /// `alive`, `interface_gone`, `interface_made_anew` or `detached`.
    attachment: &'static str,
    interface: &'a str,
    ifindex: u32,
    /// `mirrored` or `virtioproxy`, by whether the interface has an address; nothing if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    networking: Option<&'static str>,
    /// `tcx` or `cls_bpf`.
    hook: &'static str,
    program: Option<LoadedProgram<'a>>,
    /// The address to which carried flows are sent inside Linux.
    alias: Ipv4Addr,
    source_alias: SourceAliasState,
    carrying: CarryingState<'a>,
    keep_on_lo: KeepOnLo,
    linux_clients: LinuxClientsState,
    /// The bits that carried packets get.
    mark: u32,
    /// `steer` or `pass`.
    default_policy: &'static str,
    /// `auto`, `direct` or `proxy`: which way flows take to ports whose container is known.
    path: &'static str,
    /// What ports get by who serves them.
    owners: Vec<OwnerRule<'a>>,
    /// How many entries of `PORT_POLICY` exempt a port; `wsl-mirror exempt list` shows them.
    exempt_ports: usize,
    /// How many ports have a policy, exempt ones among them, or a path; `wsl-mirror policy list` shows them.
    policies: usize,
    /// Every reason, in the order of its counter.
    verdicts: Vec<Verdict>,
    ports: Vec<Port>,
    /// Listeners with a container behind them.
    targets: Vec<targets::Row>,
    /// Ports whose policy is `direct`, and no container is known behind their listeners: their flows pass.
    direct_without_target: Vec<targets::Untargeted>,
}

/// Whether flows are carried.
#[derive(Debug, Serialize)]
struct CarryingState<'a> {
    /// `on` or `off`, as the program was told.
    state: &'static str,
    /// What keeps flows from being carried now, one sentence each.
    obstacles: Vec<String>,
    /// What of the machine's packet filters could not be read.
    unread: &'a [String],
}

/// Linux' own clients of published ports.
#[derive(Debug, Serialize)]
struct LinuxClientsState {
    /// `translated` or `off`: whether they are connected straight to containers, as the programs were told.
    state: &'static str,
    /// Whether UDP's hooks are attached. They are only while a UDP port has a container.
    udp_hooks: bool,
    /// Every outcome, in the order of its counter.
    outcomes: Vec<Outcome>,
}

/// What connects and unconnected datagrams to an address of this machine got.
#[derive(Debug, Serialize)]
struct Outcome {
    outcome: &'static str,
    count: u64,
}

/// The address from which direct flows come inside Linux.
#[derive(Debug, Serialize)]
struct SourceAliasState {
    address: Ipv4Addr,
    /// Whether its route is there. Without it no direct flow begins.
    route: bool,
    /// Whether its policy route rules are there.
    rules: bool,
    /// Why no flow can go direct now, in words.
    obstacle: Option<String>,
}

#[derive(Debug, Serialize)]
struct LoadedProgram<'a> {
    id: u32,
    name: &'a str,
    /// Of the instructions, as bpftool shows it.
    tag: String,
}

#[derive(Debug, Serialize)]
struct OwnerRule<'a> {
    /// The process's name.
    name: &'a str,
    /// Its user; `null` stands for any.
    uid: Option<u32>,
    /// `steer` or `pass`.
    policy: &'static str,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "these are the names in the JSON")]
struct Verdict {
    verdict: &'static str,
    reason: &'static str,
    packets: u64,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "these are the names in the JSON")]
struct Port {
    port: u16,
    protocol: &'static str,
    steered_flows: u64,
    steered_packets: u64,
    direct_flows: u64,
    direct_packets: u64,
    passed_packets: u64,
    failed_packets: u64,
}

impl<'a> From<&'a Snapshot> for Status<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        Self {
            loaded: snapshot.loaded.is_some(),
            steering: snapshot.is_steering(),
            details: snapshot.loaded.as_ref().map(Details::from),
            elsewhere: snapshot.elsewhere.iter().map(Other::from).collect(),
            agent: snapshot.agent.as_ref(),
        }
    }
}

impl<'a> From<&'a Elsewhere> for Other<'a> {
    fn from(found: &'a Elsewhere) -> Self {
        let Elsewhere { interface, ifindex, hook, program } = found;
        Self { interface, ifindex: *ifindex, hook: hook.name(), program: *program }
    }
}

impl<'a> From<&'a Loaded> for Details<'a> {
    fn from(loaded: &'a Loaded) -> Self {
        Self {
            attachment: match loaded.attachment {
                Attachment::Alive(_) => "alive",
                Attachment::InterfaceGone => "interface_gone",
                Attachment::InterfaceMadeAnew => "interface_made_anew",
                Attachment::Detached => "detached",
            },
            interface: &loaded.interface,
            ifindex: loaded.ifindex,
            networking: loaded.networking.as_ref().map(NetworkingMode::name),
            hook: loaded.hook.map_or("unknown", Hook::name),
            program: loaded.program.as_ref().map(LoadedProgram::from),
            alias: loaded.alias,
            source_alias: SourceAliasState {
                address: loaded.source_alias.address(),
                route: loaded.source_alias.has_route(),
                rules: loaded.source_alias.has_rules(),
                obstacle: loaded.source_alias.obstacle(),
            },
            keep_on_lo: KeepOnLo::from(&loaded.keeping),
            carrying: CarryingState {
                state: match loaded.carrying {
                    Carrying::On => "on",
                    Carrying::Off => "off",
                },
                obstacles: loaded.obstacles.iter().map(ToString::to_string).collect(),
                unread: &loaded.unread,
            },
            linux_clients: LinuxClientsState {
                state: match loaded.linux_clients {
                    LinuxClients::Translated => "translated",
                    LinuxClients::Off => "off",
                },
                udp_hooks: loaded.has_udp_hooks,
                outcomes: loaded
                    .clients
                    .iter()
                    .map(|(outcome, count)| Outcome { outcome: outcome.name(), count: *count })
                    .collect(),
            },
            mark: loaded.mark,
            default_policy: loaded.default_policy.name(),
            path: loaded.path.name(),
            owners: loaded.owners.iter().map(OwnerRule::from).collect(),
            exempt_ports: loaded.exempt_ports(),
            policies: loaded.policies.len(),
            verdicts: Reason::ALL
                .iter()
                .map(|reason| Verdict {
                    verdict: reason.verdict().name(),
                    reason: reason.name(),
                    packets: loaded.verdicts.get(*reason),
                })
                .collect(),
            ports: loaded.ports.iter().filter_map(Port::from_entry).collect(),
            targets: targets::rows(loaded),
            direct_without_target: targets::untargeted(loaded),
        }
    }
}

impl<'a> From<&'a Program> for LoadedProgram<'a> {
    fn from(program: &'a Program) -> Self {
        Self { id: program.id, name: &program.name, tag: format!("{:016x}", program.tag) }
    }
}

impl<'a> From<(&'a Owner, &OwnerPolicy)> for OwnerRule<'a> {
    fn from((owner, policy): (&'a Owner, &OwnerPolicy)) -> Self {
        Self {
            name: owner.name(),
            uid: (owner.uid != Owner::ANY_UID).then_some(owner.uid),
            policy: policy.policy().name(),
        }
    }
}

impl Port {
    fn from_entry((key, traffic): (&PortKey, &PortTraffic)) -> Option<Self> {
        Some(Self {
            port: key.port,
            protocol: Protocol::from_number(key.protocol)?.name(),
            steered_flows: traffic.steered_flows,
            steered_packets: traffic.steered_packets,
            direct_flows: traffic.direct_flows,
            direct_packets: traffic.direct_packets,
            passed_packets: traffic.passed_packets,
            failed_packets: traffic.failed_packets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::report::State;
    use crate::inspect::snapshot::tests::loaded;

    fn json(snapshot: &Snapshot) -> serde_json::Value {
        serde_json::to_value(Status::from(snapshot)).unwrap()
    }

    #[test]
    fn json_keeps_its_shape() {
        let mut status = json(&Snapshot { loaded: Some(loaded()), ..Snapshot::default() });
        let expected_without_verdicts = serde_json::json!({
            "loaded": true, "steering": true, "attachment": "alive", "interface": "loopback0", "ifindex": 7,
            "hook": "tcx", "program": {"id": 42, "name": "wsl_mirror", "tag": "00000000000000ff"}, "alias": "127.119.0.1",
            "source_alias": {"address": "192.0.0.8", "route": true, "rules": true, "obstacle": null},
            "carrying": {"state": "on", "obstacles": [], "unread": []},
            "keep_on_lo": {"kept": true, "leased": [44620, 48715], "bit": 64, "obstacle": null},
            "mark": 128,
            "linux_clients": {"state": "translated", "udp_hooks": false,
                              "outcomes": [{"outcome": "translated", "count": 5}, {"outcome": "closed", "count": 0}]},
            "default_policy": "steer",
            "path": "auto",
            "exempt_ports": 2,
            "policies": 3,
            "owners": [{"name": "docker-proxy", "uid": 0, "policy": "steer"}],
            "ports": [{"port": 8080, "protocol": "tcp", "steered_flows": 3, "steered_packets": 30,
                       "direct_flows": 2, "direct_packets": 20, "passed_packets": 1, "failed_packets": 0}],
            "targets": [],
            "direct_without_target": [],
        });
        let verdicts = status.as_object_mut().unwrap().remove("verdicts").unwrap();
        assert_eq!(status, expected_without_verdicts);
        assert_eq!(verdicts.as_array().unwrap().len(), Reason::ALL.len());
        assert_eq!(verdicts[0], serde_json::json!({"verdict": "steer", "reason": "steer_new", "packets": 3}));
        assert_eq!(json(&Snapshot::default()), serde_json::json!({"loaded": false, "steering": false}));
    }

    #[test]
    fn json_has_others_and_the_agent_where_there_are_some() {
        let agent = Agent {
            pid: 7,
            state: State::Aside,
            says: "standing aside".into(),
            config_error: None,
            warnings: Vec::new(),
        };
        let elsewhere =
            Elsewhere { interface: "loopback0".into(), ifindex: 9, hook: Hook::ClsBpf, program: 42 };
        let snapshot = Snapshot { elsewhere: vec![elsewhere], agent: Some(agent), ..Snapshot::default() };
        let expected = serde_json::json!({
            "loaded": false, "steering": true,
            "elsewhere": [{"interface": "loopback0", "ifindex": 9, "hook": "cls_bpf", "program": 42}],
            "agent": {"pid": 7, "state": "aside", "says": "standing aside"},
        });
        assert_eq!(json(&snapshot), expected);
    }

    #[test]
    fn json_keeps_the_order_of_its_fields() {
        let snapshot = Snapshot { loaded: Some(loaded()), ..Snapshot::default() };
        let text = serde_json::to_string(&Status::from(&snapshot)).unwrap();
        let fields = [
            "loaded",
            "steering",
            "attachment",
            "interface",
            "ifindex",
            "hook",
            "program",
            "alias",
            "source_alias",
            "carrying",
            "keep_on_lo",
            "linux_clients",
            "mark",
            "default_policy",
            "path",
            "owners",
            "exempt_ports",
            "policies",
            "verdicts",
            "ports",
            "targets",
            "direct_without_target",
        ];
        let places: Vec<_> =
            fields.iter().map(|field| text.find(&format!("\"{field}\":")).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
    }
}
