//! `wsl-mirror status`

use std::collections::BTreeMap;

use anyhow::Result;
use aya::programs::{ProgramInfo, loaded_programs};
use clap::Args;
use serde::Serialize;
use wsl_mirror_core::abi::{
    Hook, Owner, OwnerPolicy, Policy, PortKey, PortRule, Protocol, Reason, Settings, Verdicts,
};

use crate::agent::report::{self, Report as Agent};
use crate::exit::Exit;
use crate::host::networking::Networking;
use crate::host::{
    interface,
    lock::{Access, Lock},
    require_root,
};
use crate::loader::delivery;
use crate::loader::maps::{self, PortTraffic};
use crate::loader::pins::Pins;
use crate::loader::state::{self, Attachment};
use crate::output::{self, BAD, GOOD, HEADING};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Shows it; the exit code tells whether packets are steered.
    pub fn exec(self) -> Result<Exit> {
        require_root("read eBPF maps")?;
        let report = Report::read()?;
        if self.json {
            output::json(&report)?;
        } else {
            output::line(&report.to_text())?;
        }
        Ok(report.exit())
    }
}

/// What `--json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether pins of ours are there.
    loaded: bool,
    /// Whether packets are steered.
    steering: bool,
    #[serde(flatten)]
    details: Option<Details>,
    /// What `unload` would do about a load whose distribution was terminated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_behind: Vec<String>,
    /// What other distributions steer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    elsewhere: Vec<Elsewhere>,
    /// `wsl-mirror run`, if it is at work in this distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<Agent>,
}

/// A program of another distribution.
#[derive(Debug, Serialize)]
struct Elsewhere {
    interface: String,
    ifindex: u32,
    /// `tcx` or `cls_bpf`.
    hook: &'static str,
    program: u32,
}

#[derive(Debug, Serialize)]
struct Details {
    /// `alive`, `interface_gone`, `interface_made_anew` or `detached`.
    attachment: &'static str,
    interface: String,
    ifindex: u32,
    /// `mirrored` or `virtioproxy`, by whether the interface has an address; nothing if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    networking: Option<&'static str>,
    /// `tcx` or `cls_bpf`.
    hook: &'static str,
    program: Option<Program>,
    /// The bits that steered packets get.
    mark: u32,
    delivery: Delivery,
    /// `steer` or `pass`.
    default_policy: &'static str,
    /// What ports get by who serves them.
    owners: Vec<OwnerRule>,
    /// How many entries of `PORT_POLICY` exempt a port; `wsl-mirror exempt list` shows them.
    exempt_ports: usize,
    /// Every reason, in the order of its counter.
    verdicts: Vec<Verdict>,
    ports: Vec<Port>,
}

/// How steered packets get to their listener.
#[derive(Debug, Serialize)]
struct Delivery {
    /// `lo`: as if received there, on ports where nothing else helps; `plain`: as they came in.
    way: &'static str,
    /// What stands in the way of delivery by `lo` now. With `lo` packets are lost then; with `plain` and nothing here
    /// it is the configuration that says so, or a `load` would change it.
    obstacles: Vec<String>,
    /// Ports whose packets a rule drops before conntrack if they do not come in on `lo`.
    dropped: Vec<Dropped>,
    /// What of the machine's packet filters could not be read.
    unread: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Dropped {
    first_port: u16,
    last_port: u16,
    protocol: &'static str,
    /// `not_on_lo` or `closed`.
    rule: &'static str,
    /// The rule.
    by: String,
}

#[derive(Debug, Serialize)]
struct Program {
    id: u32,
    name: String,
    /// Of the instructions, as bpftool shows it.
    tag: String,
}

#[derive(Debug, Serialize)]
struct OwnerRule {
    /// The process's name.
    name: String,
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
    passed_packets: u64,
    failed_packets: u64,
}

impl Report {
    fn read() -> Result<Self> {
        let _lock = Lock::take(Access::Shared, output::note)?;
        let pins = Pins::read()?;
        if !pins.has("SETTINGS") {
            let elsewhere = elsewhere(&pins)?;
            return Ok(Self {
                loaded: false,
                // By whom makes no difference to packets.
                steering: !elsewhere.is_empty(),
                details: None,
                left_behind: if elsewhere.is_empty() { left_behind()? } else { Vec::new() },
                elsewhere,
                agent: report::of_the_running_one(),
            });
        }
        pins.require_our_layout()?;
        let settings = maps::SETTINGS.pinned()?.get()?;
        let attachment = state::attachment(&settings, &pins)?;
        let program = match attachment {
            Attachment::Alive(id) => program(id),
            _ => None,
        };
        // A load that was killed may have left some of the maps unpinned.
        let policies =
            if pins.has("PORT_POLICY") { maps::PORT_POLICY.pinned()?.all()? } else { BTreeMap::new() };
        let owners = if pins.has("OWNERS") { maps::OWNERS.pinned()?.all()? } else { BTreeMap::new() };
        let verdicts = if pins.has("VERDICTS") { maps::verdicts()? } else { Verdicts::default() };
        let counted = pins.has("PORT_STATS") && pins.has("PORT_PACKETS");
        let ports = if counted { maps::port_traffic()? } else { BTreeMap::new() };
        let exempt_ports = policies.values().filter(|policy| policy.effective() == Policy::Pass).count();
        let delivery = Delivery::new(&settings, &state::delivery_state(&state::our_programs(&pins)?)?);
        let mut details =
            Details::new(&settings, attachment, program, delivery, exempt_ports, &verdicts, &ports);
        if attachment.is_alive() {
            details.networking = Some(Networking::of(settings.ifindex)?.name());
        }
        details.owners = owners.iter().map(|(owner, policy)| OwnerRule::new(*owner, *policy)).collect();
        let elsewhere = elsewhere(&pins)?;
        Ok(Self {
            loaded: true,
            steering: attachment.is_alive()
                || elsewhere.iter().any(|other| other.interface == details.interface),
            details: Some(details),
            left_behind: Vec::new(),
            elsewhere,
            agent: report::of_the_running_one(),
        })
    }

    fn exit(&self) -> Exit {
        match (self.loaded, self.steering) {
            (_, true) => Exit::Success,
            (true, false) => Exit::NotAttached,
            (false, false) => Exit::NotLoaded,
        }
    }

    fn to_text(&self) -> String {
        let others = self.elsewhere.iter().map(|other| {
            format!(
                "{GOOD}steering{GOOD:#} {} (index {}) by {}, from another distribution (program {}): look at it there",
                other.interface, other.ifindex, other.hook, other.program
            )
        });
        let agent = self.agent.as_ref().map(agent_text);
        let own = self.own_text();
        others.chain(own).chain(agent).collect::<Vec<_>>().join("\n")
    }

    /// What there is to say about what is loaded here; nothing if that is of no use, as another distribution steers.
    fn own_text(&self) -> Option<String> {
        match &self.details {
            None if !self.elsewhere.is_empty() => None,
            Some(details) if details.attachment != "alive" && self.steering => None,
            None => {
                let mut text = vec![format!("{BAD}not loaded{BAD:#}: `wsl-mirror load` loads it")];
                if !self.left_behind.is_empty() {
                    text.push("left behind by another distribution; `wsl-mirror unload` would:".to_owned());
                }
                text.extend(self.left_behind.iter().map(|left| format!("  {left}")));
                Some(text.join("\n"))
            }
            Some(details) => Some(details.to_text(details.attachment == "alive")),
        }
    }
}

impl Details {
    fn new(
        settings: &Settings,
        attachment: Attachment,
        program: Option<Program>,
        delivery: Delivery,
        exempt_ports: usize,
        verdicts: &Verdicts,
        ports: &BTreeMap<PortKey, PortTraffic>,
    ) -> Self {
        Self {
            attachment: match attachment {
                Attachment::Alive(_) => "alive",
                Attachment::InterfaceGone => "interface_gone",
                Attachment::InterfaceMadeAnew => "interface_made_anew",
                Attachment::Detached => "detached",
            },
            interface: settings.interface_name().to_owned(),
            ifindex: settings.ifindex,
            networking: None,
            hook: Hook::from_number(settings.hook).map_or("unknown", Hook::name),
            program,
            mark: settings.mark,
            delivery,
            default_policy: Policy::from_byte(u8::try_from(settings.default_policy).unwrap_or_default())
                .name(),
            owners: Vec::new(),
            exempt_ports,
            verdicts: Reason::ALL
                .iter()
                .map(|reason| Verdict {
                    verdict: reason.verdict().name(),
                    reason: reason.name(),
                    packets: verdicts.get(*reason),
                })
                .collect(),
            ports: ports.iter().filter_map(|(key, stats)| Port::new(*key, *stats)).collect(),
        }
    }

    fn to_text(&self, steering: bool) -> String {
        let state = if steering {
            format!("{GOOD}steering{GOOD:#} {} (index {}) by {}", self.interface, self.ifindex, self.hook)
        } else {
            let (interface, index) = (&self.interface, &self.ifindex);
            let why = match self.attachment {
                "interface_gone" if *index == 0 => format!("there is no interface {interface} yet"),
                "interface_gone" => format!("there is no interface {interface} any more"),
                "interface_made_anew" => {
                    format!("{interface} was removed and made again (it was index {index})")
                }
                _ => format!("the program is not on {interface} any more"),
            };
            format!("{BAD}not steering{BAD:#}: {why}; `wsl-mirror load` attaches the program again")
        };
        let mut text = vec![state];
        if self.networking == Some(Networking::VirtioProxy.name()) {
            text.push(format!("mode     virtioproxy: {} has an address of its own", self.interface));
        }
        if let Some(program) = &self.program {
            text.push(format!("program  {} id {} tag {}", program.name, program.id, program.tag));
        }
        text.push(format!("mark     {:#x}", self.mark));
        text.extend(self.delivery.to_text());
        text.push(format!("default  {}", self.default_policy));
        for owner in &self.owners {
            let user = owner.uid.map_or_else(|| "any user".to_owned(), |uid| format!("user {uid}"));
            text.push(format!("owner    {} ({user}): {}", owner.name, owner.policy));
        }
        text.push(format!("exempt   {} (`wsl-mirror exempt list`)", count(self.exempt_ports, "port")));

        let seen: Vec<_> = self.verdicts.iter().filter(|verdict| verdict.packets != 0).collect();
        if !seen.is_empty() {
            let meaning =
                |name| Reason::ALL.iter().find(|reason| reason.name() == name).map(|r| r.describe());
            text.push(format!("\n{HEADING}packets so far{HEADING:#}"));
            text.push(output::table(
                ["reason", "packets", "meaning"],
                &[1],
                seen.iter().map(|verdict| {
                    let meaning = meaning(verdict.reason).unwrap_or_default();
                    [verdict.reason.to_owned(), verdict.packets.to_string(), meaning.to_owned()]
                }),
            ));
        }
        if !self.ports.is_empty() {
            text.push(format!("\n{HEADING}ports so far{HEADING:#}"));
            text.push(output::table(
                ["port", "flows steered", "packets steered", "passed", "failed"],
                &[1, 2, 3, 4],
                self.ports.iter().map(|port| {
                    [
                        format!("{}/{}", port.port, port.protocol),
                        port.steered_flows.to_string(),
                        port.steered_packets.to_string(),
                        port.passed_packets.to_string(),
                        port.failed_packets.to_string(),
                    ]
                }),
            ));
        }
        text.join("\n")
    }
}

/// The rule is somebody's will, and nothing that we have to find a way around.
const CLOSED: &str = PortRule::Closed.name();

impl Delivery {
    fn new(settings: &Settings, state: &delivery::State) -> Self {
        let mut obstacles = state.obstacles(settings.mark);
        if settings.lo_ifindex != 0 {
            obstacles.extend(state.missing(settings.mark));
        }
        Self {
            way: if settings.lo_ifindex == 0 { "plain" } else { "lo" },
            obstacles: obstacles.iter().map(ToString::to_string).collect(),
            dropped: state
                .firewall
                .drops(settings.interface_name())
                .into_iter()
                .map(|drop| Dropped {
                    first_port: *drop.ports.start(),
                    last_port: *drop.ports.end(),
                    protocol: drop.protocol.name(),
                    rule: drop.rule.name(),
                    by: drop.by,
                })
                .collect(),
            unread: state.firewall.unread.clone(),
        }
    }

    fn to_text(&self) -> Vec<String> {
        let mut text = vec![match (self.way, self.obstacles.is_empty()) {
            ("lo", true) => "delivery by lo where nothing else helps".to_owned(),
            ("lo", false) => format!(
                "delivery {BAD}by lo, which loses packets{BAD:#}; once this is put right, or else to take the plain \
                 way, `wsl-mirror load`:"
            ),
            (_, true) => {
                "delivery plain: so says the configuration, or `wsl-mirror load` changes it".to_owned()
            }
            (_, false) => "delivery plain: by lo packets would be lost:".to_owned(),
        }];
        text.extend(self.obstacles.iter().map(|obstacle| format!("         {obstacle}")));
        let is_lost = self.way != "lo" || !self.obstacles.is_empty();
        for dropped in &self.dropped {
            let ports = match (dropped.first_port, dropped.last_port) {
                (1, u16::MAX) => "every port".to_owned(),
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            };
            let what = match (dropped.rule, is_lost) {
                (CLOSED, _) => "closed to Windows".to_owned(),
                (_, true) => format!("{BAD}out of reach{BAD:#}"),
                (_, false) => "only by lo".to_owned(),
            };
            text.push(format!("         {what}: {ports}/{}, for {}", dropped.protocol, dropped.by));
        }
        text.extend(self.unread.iter().map(|unread| format!("         could not be read: {unread}")));
        text
    }
}

impl OwnerRule {
    fn new(owner: Owner, policy: OwnerPolicy) -> Self {
        Self {
            name: owner.name().to_owned(),
            uid: (owner.uid != Owner::ANY_UID).then_some(owner.uid),
            policy: policy.policy().name(),
        }
    }
}

impl Port {
    fn new(key: PortKey, stats: PortTraffic) -> Option<Self> {
        Some(Self {
            port: key.port,
            protocol: Protocol::from_number(key.protocol)?.name(),
            steered_flows: stats.steered_flows,
            steered_packets: stats.steered_packets,
            passed_packets: stats.passed_packets,
            failed_packets: stats.failed_packets,
        })
    }
}

/// What the agent says of itself.
fn agent_text(agent: &Agent) -> String {
    let mut lines = vec![format!("agent    process {}: {}", agent.pid, agent.says)];
    let not_in_force = agent.config_error.iter().map(|error| format!("{BAD}not in force{BAD:#}: {error}"));
    let rest = not_in_force.chain(agent.warnings.iter().cloned());
    lines.extend(rest.map(|line| format!("         {line}")));
    lines.join("\n")
}

/// What other distributions steer.
fn elsewhere(pins: &Pins) -> Result<Vec<Elsewhere>> {
    let others = state::others(&state::our_programs(pins)?)?;
    Ok(others
        .into_iter()
        .filter_map(|found| {
            Some(Elsewhere {
                interface: interface::name(found.ifindex)?,
                ifindex: found.ifindex,
                hook: found.hook.name(),
                program: found.program,
            })
        })
        .collect())
}

/// What is there although nothing needs it.
fn left_behind() -> Result<Vec<String>> {
    let changes = delivery::teardown(&delivery::Machine::read()?);
    Ok(changes.iter().map(ToString::to_string).collect())
}

/// `1 port`, `2 ports`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What the kernel says about a program; it may have been replaced since its id was read.
fn program(id: u32) -> Option<Program> {
    let info: ProgramInfo = loaded_programs().flatten().find(|info| info.id() == id)?;
    Some(Program {
        id,
        name: info.name_as_str().unwrap_or_default().to_owned(),
        tag: format!("{:016x}", info.tag()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details() -> Details {
        let mut interface = [0; 16];
        interface[..9].copy_from_slice(b"loopback0");
        let settings = Settings {
            layout: 1,
            mark: 0x1000,
            default_policy: Policy::Steer as u32,
            hook: Hook::Tcx as u32,
            ifindex: 7,
            clsact_ifindex: 0,
            interface,
            lo_ifindex: 1,
        };
        let delivery = Delivery::new(&settings, &delivery::tests::loaded());
        let mut verdicts = Verdicts::default();
        *verdicts.counter(Reason::New) = 3;
        let key = PortKey::new(Protocol::Tcp, 8080);
        let stats =
            PortTraffic { steered_flows: 3, steered_packets: 30, passed_packets: 1, failed_packets: 0 };
        let program = Some(Program { id: 42, name: "wsl_mirror".into(), tag: "00ff".into() });
        let ports = BTreeMap::from([(key, stats)]);
        let mut details =
            Details::new(&settings, Attachment::Alive(42), program, delivery, 2, &verdicts, &ports);
        details.owners =
            vec![OwnerRule::new(Owner::new(b"docker-proxy", 0), OwnerPolicy::new(Policy::Steer))];
        details
    }

    #[test]
    fn json_keeps_its_shape() {
        let report = Report { loaded: true, steering: true, details: Some(details()), ..nothing() };
        let json = serde_json::to_value(&report).unwrap();
        let expected_without_verdicts = serde_json::json!({
            "loaded": true, "steering": true, "attachment": "alive", "interface": "loopback0", "ifindex": 7,
            "hook": "tcx", "program": {"id": 42, "name": "wsl_mirror", "tag": "00ff"}, "mark": 4096,
            "delivery": {"way": "lo", "obstacles": [], "dropped": [], "unread": []}, "default_policy": "steer", "exempt_ports": 2,
            "owners": [{"name": "docker-proxy", "uid": 0, "policy": "steer"}],
            "ports": [{"port": 8080, "protocol": "tcp", "steered_flows": 3, "steered_packets": 30,
                       "passed_packets": 1, "failed_packets": 0}],
        });
        let mut without = json.clone();
        without.as_object_mut().unwrap().remove("verdicts");
        assert_eq!(without, expected_without_verdicts);
        assert_eq!(json["verdicts"].as_array().unwrap().len(), Reason::ALL.len());
        assert_eq!(
            json["verdicts"][0],
            serde_json::json!({"verdict": "steer", "reason": "steer_new", "packets": 3})
        );
        let json = serde_json::to_value(nothing()).unwrap();
        assert_eq!(json, serde_json::json!({"loaded": false, "steering": false}));
        let agent = Agent {
            pid: 7,
            state: "aside".into(),
            says: "standing aside".into(),
            config_error: None,
            warnings: Vec::new(),
        };
        let elsewhere = Elsewhere { interface: "loopback0".into(), ifindex: 9, hook: "cls_bpf", program: 42 };
        let report = Report { steering: true, elsewhere: vec![elsewhere], agent: Some(agent), ..nothing() };
        let expected = serde_json::json!({
            "loaded": false, "steering": true,
            "elsewhere": [{"interface": "loopback0", "ifindex": 9, "hook": "cls_bpf", "program": 42}],
            "agent": {"pid": 7, "state": "aside", "says": "standing aside"},
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        let text = report.to_text();
        assert!(text.contains("from another distribution") && text.contains("process 7: standing"), "{text}");
        assert!(!text.contains("not loaded"), "{text}");
    }

    fn nothing() -> Report {
        Report {
            loaded: false,
            steering: false,
            details: None,
            left_behind: Vec::new(),
            elsewhere: Vec::new(),
            agent: None,
        }
    }

    #[test]
    fn people_see_only_the_reasons_that_occurred() {
        let text = details().to_text(true);
        assert!(text.contains("steer_new") && text.contains("8080/tcp"), "{text}");
        assert!(!text.contains("pass_vlan"), "{text}");
    }

    #[test]
    fn the_exit_code_tells_whether_packets_are_steered() {
        let exit = |loaded, steering| Report { loaded, steering, ..nothing() }.exit();
        assert_eq!(exit(true, true), Exit::Success);
        assert_eq!(exit(true, false), Exit::NotAttached);
        assert_eq!(exit(false, false), Exit::NotLoaded);
    }
}
