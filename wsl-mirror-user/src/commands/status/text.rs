//! `wsl-mirror status` for people.

use wsl_mirror_core::abi::{Carrying, Hook, LinuxClients, Owner, Path, Policy, Protocol, Reason};

use super::{keeping, targets};
use crate::agent::report::Report as Agent;
use crate::host::networking::NetworkingMode;
use crate::inspect::snapshot::{Elsewhere, Loaded, Snapshot};
use crate::loader::state::Attachment;
use crate::output::{self, BAD, GOOD, HEADING};

/// The text, without the last line break.
pub fn render(snapshot: &Snapshot) -> String {
    let others = snapshot.elsewhere.iter().map(elsewhere);
    let agent = snapshot.agent.as_ref().map(agent);
    others.chain(own(snapshot)).chain(agent).collect::<Vec<_>>().join("\n")
}

fn elsewhere(other: &Elsewhere) -> String {
    format!(
        "{GOOD}steering{GOOD:#} {} (index {}) by {}, from another distribution (program {}): look at it there",
        other.interface,
        other.ifindex,
        other.hook.name(),
        other.program
    )
}

/// What is loaded here; nothing if that is of no use, as another distribution steers.
fn own(snapshot: &Snapshot) -> Option<String> {
    match &snapshot.loaded {
        None if !snapshot.elsewhere.is_empty() => None,
        Some(own) if !own.attachment.is_alive() && snapshot.is_steering() => None,
        None => Some(format!("{BAD}not loaded{BAD:#}: `wsl-mirror load` loads it")),
        Some(own) => Some(loaded(own)),
    }
}

fn loaded(loaded: &Loaded) -> String {
    let mut text = vec![attachment(loaded)];
    if loaded.networking == Some(NetworkingMode::VirtioProxy) {
        text.push(format!("mode     virtioproxy: {} has an address of its own", loaded.interface));
    }
    if let Some(program) = &loaded.program {
        text.push(format!("program  {} id {} tag {:016x}", program.name, program.id, program.tag));
    }
    text.extend(carrying(loaded));
    text.push(format!("alias    {}", loaded.alias));
    text.extend(source_alias(loaded));
    text.push(keeping::text(&loaded.keeping));
    text.push(format!("mark     {:#x}", loaded.mark));
    text.push(format!("default  {}", loaded.default_policy.name()));
    text.push(format!("path     {}", loaded.path.name()));
    for (owner, policy) in &loaded.owners {
        let user =
            if owner.uid == Owner::ANY_UID { "any user".to_owned() } else { format!("user {}", owner.uid) };
        text.push(format!("owner    {} ({user}): {}", owner.name(), policy.policy().name()));
    }
    text.push(format!("exempt   {} (`wsl-mirror exempt list`)", count(loaded.exempt_ports(), "port")));
    text.extend(policies(loaded));
    text.push(format!("clients  {}", clients(loaded)));
    text.extend(targets::text(loaded));
    text.extend(verdicts(loaded));
    text.extend(ports(loaded));
    text.extend(outcomes(loaded));
    text.join("\n")
}

/// The source alias, and why no flow goes direct if that is so.
fn source_alias(loaded: &Loaded) -> Vec<String> {
    let alias = &loaded.source_alias;
    let missing = match (alias.has_route(), alias.has_rules()) {
        (true, true) => None,
        (false, true) => Some("its route is missing"),
        (true, false) => Some("its policy route rules are missing"),
        (false, false) => Some("its route and its policy route rules are missing"),
    };
    let state =
        missing.map(|missing| format!(": {BAD}no flow goes direct{BAD:#}, {missing}")).unwrap_or_default();
    let remedy = || missing.map(|_| "`wsl-mirror load` makes what is missing".to_owned());
    let mut text = vec![format!("source   {}{state}", alias.address())];
    text.extend(alias.obstacle().or_else(remedy).map(|why| format!("         {why}")));
    text
}

/// How many ports have a word of their own, beside the exempt ones.
fn policies(loaded: &Loaded) -> Option<String> {
    let words = [Policy::Steer, Policy::Direct]
        .map(|policy| (policy.name().to_owned(), loaded.ports_with(|written| written.effective() == policy)));
    let paths =
        ("a path of their own".to_owned(), loaded.ports_with(|written| written.path() != Path::Unset));
    let words = words.into_iter().chain([paths]).filter(|(_, ports)| *ports != 0);
    let words: Vec<_> = words.map(|(word, ports)| format!("{word}: {}", count(ports, "port"))).collect();
    (!words.is_empty()).then(|| format!("policies {} (`wsl-mirror policy list`)", words.join(", ")))
}

fn attachment(loaded: &Loaded) -> String {
    let (interface, index) = (&loaded.interface, loaded.ifindex);
    let why = match loaded.attachment {
        Attachment::Alive(_) => {
            let hook = loaded.hook.map_or("unknown", Hook::name);
            return format!("{GOOD}steering{GOOD:#} {interface} (index {index}) by {hook}");
        }
        Attachment::InterfaceGone if index == 0 => format!("there is no interface {interface} yet"),
        Attachment::InterfaceGone => format!("there is no interface {interface} any more"),
        Attachment::InterfaceMadeAnew => {
            format!("{interface} was removed and made again (it was index {index})")
        }
        Attachment::Detached => format!("the program is not on {interface} any more"),
    };
    format!("{BAD}not steering{BAD:#}: {why}; `wsl-mirror load` attaches the program again")
}

/// What becomes of Linux' own clients.
const fn clients(loaded: &Loaded) -> &'static str {
    match (loaded.linux_clients, loaded.has_udp_hooks) {
        (LinuxClients::Off, _) => "of Linux are left alone",
        (LinuxClients::Translated, true) => {
            "of Linux are connected straight to containers; UDP's hooks are attached"
        }
        (LinuxClients::Translated, false) => {
            "of Linux are connected straight to containers; UDP's hooks wait for a UDP port with a container"
        }
    }
}

/// What Linux' own clients got so far.
fn outcomes(loaded: &Loaded) -> Vec<String> {
    let seen = loaded.clients.iter().filter(|(_, count)| **count != 0);
    let rows: Vec<_> = seen
        .map(|(outcome, count)| [outcome.name(), &count.to_string(), outcome.describe()].map(str::to_owned))
        .collect();
    if rows.is_empty() {
        return Vec::new();
    }
    vec![
        format!("\n{HEADING}connects of Linux' own clients so far, and unconnected datagrams{HEADING:#}"),
        output::table(["outcome", "count", "meaning"], &[1], rows),
    ]
}

/// The reasons that occurred.
fn verdicts(loaded: &Loaded) -> Vec<String> {
    let seen: Vec<_> = Reason::ALL.iter().filter(|reason| loaded.verdicts.get(**reason) != 0).collect();
    if seen.is_empty() {
        return Vec::new();
    }
    let rows = seen.into_iter().map(|reason| {
        let packets = loaded.verdicts.get(*reason);
        [reason.name().to_owned(), packets.to_string(), reason.describe().to_owned()]
    });
    vec![
        format!("\n{HEADING}packets so far{HEADING:#}"),
        output::table(["reason", "packets", "meaning"], &[1], rows),
    ]
}

/// The ports on which something happened.
fn ports(loaded: &Loaded) -> Vec<String> {
    let rows: Vec<_> = loaded
        .ports
        .iter()
        .filter_map(|(key, traffic)| {
            Some([
                format!("{}/{}", key.port, Protocol::from_number(key.protocol)?.name()),
                traffic.steered_flows.to_string(),
                traffic.steered_packets.to_string(),
                traffic.direct_flows.to_string(),
                traffic.direct_packets.to_string(),
                traffic.passed_packets.to_string(),
                traffic.failed_packets.to_string(),
            ])
        })
        .collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let headings =
        ["port", "flows steered", "packets steered", "flows direct", "packets direct", "passed", "failed"];
    vec![format!("\n{HEADING}ports so far{HEADING:#}"), output::table(headings, &[1, 2, 3, 4, 5, 6], rows)]
}

/// Whether flows are carried, and what is in the way.
fn carrying(loaded: &Loaded) -> Vec<String> {
    let is_clear = loaded.obstacles.is_empty();
    let mut text = vec![match (loaded.carrying, is_clear) {
        (Carrying::On, true) => "carrying on".to_owned(),
        (Carrying::On, false) => {
            format!("carrying {BAD}on, but flows hang{BAD:#}; `wsl-mirror load` takes this into account:")
        }
        (Carrying::Off, true) => {
            format!(
                "carrying {BAD}off{BAD:#}: nothing is in the way any more; `wsl-mirror load` begins again"
            )
        }
        (Carrying::Off, false) => format!("carrying {BAD}off{BAD:#}, packets pass as if nothing was loaded:"),
    }];
    text.extend(loaded.obstacles.iter().map(|obstacle| format!("         {obstacle}")));
    text.extend(loaded.unread.iter().map(|unread| format!("         could not be read: {unread}")));
    text
}

/// What the agent says of itself.
fn agent(agent: &Agent) -> String {
    let mut lines = vec![format!("agent    process {}: {}", agent.pid, agent.says)];
    let not_in_force = agent.config_error.iter().map(|error| format!("{BAD}not in force{BAD:#}: {error}"));
    let rest = not_in_force.chain(agent.warnings.iter().cloned());
    lines.extend(rest.map(|line| format!("         {line}")));
    lines.join("\n")
}

/// `1 port`, `2 ports`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::report::State;
    use crate::host::firewall::Obstacle;
    use crate::inspect::keeping::Keeping;
    use crate::inspect::snapshot::tests::loaded as loaded_snapshot;
    use crate::loader::source_alias::{self, SourceAlias};

    /// The text without styles.
    fn plain(snapshot: &Snapshot) -> String {
        anstream::adapter::strip_str(&render(snapshot)).to_string()
    }

    fn with(change: impl FnOnce(&mut Loaded)) -> Snapshot {
        let mut loaded = loaded_snapshot();
        change(&mut loaded);
        Snapshot { loaded: Some(loaded), ..Snapshot::default() }
    }

    #[test]
    fn people_see_only_the_reasons_that_occurred() {
        let expected = "\
steering loopback0 (index 7) by tcx
program  wsl_mirror id 42 tag 00000000000000ff
carrying on
alias    127.119.0.1
source   192.0.0.8
lo       connections within Linux stay on lo (ports 44620-48715, mark 0x40)
mark     0x80
default  steer
path     auto
owner    docker-proxy (user 0): steer
exempt   2 ports (`wsl-mirror exempt list`)
policies steer: 1 port (`wsl-mirror policy list`)
clients  of Linux are connected straight to containers; UDP's hooks wait for a UDP port with a container

packets so far
reason     packets  meaning
";
        let text = plain(&with(|_| {}));
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("steer_new") && text.contains("8080/tcp"), "{text}");
        assert!(!text.contains("pass_vlan"), "{text}");
    }

    #[test]
    fn people_see_what_becomes_of_clients_of_linux() {
        let text = plain(&with(|loaded| loaded.has_udp_hooks = true));
        assert!(text.contains(
            "\nclients  of Linux are connected straight to containers; UDP's hooks are attached\n"
        ));
        let table = "and unconnected datagrams\noutcome     count  meaning\ntranslated      5  translated: the socket";
        assert!(text.contains(table), "{text}");
        assert!(!text.contains("a firewall rule closes"), "that has not occurred: {text}");
        let off = plain(&with(|loaded| {
            loaded.linux_clients = LinuxClients::Off;
            loaded.clients.clear();
        }));
        assert!(off.contains("\nclients  of Linux are left alone\n") && !off.contains("outcome"), "{off}");
    }

    #[test]
    fn people_read_why_nothing_is_steered() {
        for (attachment, index, why) in [
            (Attachment::InterfaceGone, 0, "there is no interface loopback0 yet"),
            (Attachment::InterfaceGone, 7, "there is no interface loopback0 any more"),
            (Attachment::InterfaceMadeAnew, 7, "loopback0 was removed and made again (it was index 7)"),
            (Attachment::Detached, 7, "the program is not on loopback0 any more"),
        ] {
            let text = plain(&with(|loaded| {
                loaded.attachment = attachment;
                loaded.ifindex = index;
            }));
            let first = text.lines().next().unwrap();
            assert_eq!(first, format!("not steering: {why}; `wsl-mirror load` attaches the program again"));
        }
    }

    #[test]
    fn people_read_why_no_flow_is_carried() {
        let lines = |carrying, obstacles: &[Obstacle]| {
            let text = plain(&with(|loaded| {
                loaded.carrying = carrying;
                loaded.obstacles = obstacles.to_vec();
                loaded.unread = vec!["nftables: no".into()];
            }));
            let from = text.lines().skip_while(|line| !line.starts_with("carrying"));
            from.take_while(|line| !line.starts_with("alias")).map(str::to_owned).collect::<Vec<_>>()
        };
        let rule = Obstacle::Zone("nft rule 7".into());
        let indented = format!("         {rule}");
        let unread = "         could not be read: nftables: no";
        assert_eq!(lines(Carrying::On, &[]), ["carrying on", unread]);
        let off = "carrying off, packets pass as if nothing was loaded:";
        assert_eq!(lines(Carrying::Off, std::slice::from_ref(&rule)), [off, &indented, unread]);
        let hang = "carrying on, but flows hang; `wsl-mirror load` takes this into account:";
        assert_eq!(lines(Carrying::On, &[rule]), [hang, &indented, unread]);
        let again = "carrying off: nothing is in the way any more; `wsl-mirror load` begins again";
        assert_eq!(lines(Carrying::Off, &[]), [again, unread]);
        let text = plain(&with(|loaded| loaded.networking = Some(NetworkingMode::VirtioProxy)));
        assert!(text.contains("\nmode     virtioproxy: loopback0 has an address of its own\n"), "{text}");
    }

    #[test]
    fn people_read_why_no_flow_goes_direct() {
        let lines = |source_alias: SourceAlias| {
            let text = plain(&with(|loaded| loaded.source_alias = source_alias));
            let from = text.lines().skip_while(|line| !line.starts_with("source"));
            from.take_while(|line| !line.starts_with("lo ")).map(str::to_owned).collect::<Vec<_>>()
        };
        let without_route = source_alias::tests::without_route();
        assert_eq!(
            lines(without_route),
            [
                "source   192.0.0.8: no flow goes direct, its route is missing",
                "         `wsl-mirror load` makes what is missing"
            ]
        );
        let nothing = lines(source_alias::tests::without_gateway());
        assert_eq!(
            nothing[0],
            "source   192.0.0.8: no flow goes direct, its route and its policy route rules are missing"
        );
        assert!(
            nothing[1].starts_with("         table 127 has no route to 127.0.0.1 by loopback0"),
            "{nothing:?}"
        );
    }

    #[test]
    fn people_read_why_connections_go_by_windows() {
        let text = plain(&with(|loaded| loaded.keeping = Keeping::ByWindows("no agent".into())));
        assert!(
            text.contains("\nlo       connections within Linux go by Windows:\n         no agent\nmark "),
            "{text}"
        );
    }

    #[test]
    fn another_distribution_takes_the_place_of_not_loaded() {
        let elsewhere =
            Elsewhere { interface: "loopback0".into(), ifindex: 9, hook: Hook::ClsBpf, program: 42 };
        let agent = Agent {
            pid: 7,
            state: State::Aside,
            says: "standing aside".into(),
            config_error: Some("bad".into()),
            warnings: vec!["careful".into()],
        };
        let snapshot = Snapshot { elsewhere: vec![elsewhere], agent: Some(agent), ..Snapshot::default() };
        assert_eq!(
            plain(&snapshot),
            "steering loopback0 (index 9) by cls_bpf, from another distribution (program 42): look at it there\n\
             agent    process 7: standing aside\n         not in force: bad\n         careful"
        );
        assert_eq!(plain(&Snapshot::default()), "not loaded: `wsl-mirror load` loads it");
    }
}
