//! Firewall rules of the user's: a port that they close to Linux' clients stays closed to them.

use std::{collections::BTreeSet, fs, time::Duration};

use serde_json::Value;
use socket2::SockAddr;
use wsl_mirror_lab::{
    Container, Docker, DockerOptions, Lab, Running, SCRATCH, Service,
    checks::{OrPanic as _, load, nft, status, wait_until},
    clients::Clients,
    loopback, pace,
    process::Background,
    published::who::who_over,
};

use crate::world::HANG;

/// The number of the container's service.
const NUMBER: u64 = 6;
/// Both lead to it by docker-proxy, which answers clients that are not translated.
const PORTS: [u16; 2] = [8080, 8081];

#[track_caller]
fn docker() -> (Lab, Docker, Running) {
    let lab = Lab::builder().build().or_panic();
    let docker = Docker::start(&lab, &DockerOptions::default()).or_panic();
    let container = Container::new("named").serve(Service::TcpNamed { port: 7, number: NUMBER });
    let running = docker.run(container.publish("8080:7").publish("127.0.0.1:8081:7")).or_panic();
    (lab, docker, running)
}

/// The ports that `status` calls closed to Linux' clients.
#[track_caller]
fn closed(lab: &Lab) -> BTreeSet<u16> {
    let (status, _) = status(lab);
    let targets = status["targets"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let found: BTreeSet<u64> = targets.iter().filter_map(|row| row["port"].as_u64()).collect();
    assert_eq!(found, BTreeSet::from(PORTS.map(u64::from)), "{status}");
    let closed = targets.iter().filter(|row| row["linux"] == "closed");
    closed.filter_map(|row| row["port"].as_u64()?.try_into().ok()).collect()
}

/// The ports on which the container answers a Linux client in time.
fn answering(clients: &Clients) -> BTreeSet<u16> {
    let answers = |port: &u16| {
        let socket = clients.tcp().ok()?;
        socket.connect_timeout(&SockAddr::from(loopback(*port)), HANG).ok()?;
        socket.set_read_timeout(Some(HANG)).ok()?;
        who_over(&mut socket.into()).ok().filter(|who| who.number == NUMBER)
    };
    PORTS.into_iter().filter(|port| answers(port).is_some()).collect()
}

/// A chain of this hook with one rule.
#[track_caller]
fn add_rule(lab: &Lab, hook: &str, rule: &str) {
    nft(
        lab,
        &format!(
            "add table ip mine; add chain ip mine closed {{ type filter hook {hook} priority filter; }}; \
             add rule ip mine closed {rule}"
        ),
    );
}

/// The tests' clients are user 0's.
#[test]
fn a_port_that_a_rule_closes_stays_closed() {
    let (lab, _docker, _running) = docker();
    let clients = Clients::new(&lab).or_panic();
    load(&lab);
    assert_eq!((closed(&lab), answering(&clients)), (BTreeSet::new(), PORTS.into()));
    for (hook, rule) in [
        ("output", "meta skuid 0 tcp dport 8080 drop"),
        ("output", "oifname { lo, loopback0 } tcp dport 8080 reject with tcp reset"),
        ("output", "ip daddr 127.0.0.0/8 tcp dport 8080 ct state new drop"),
        ("input", "iifname { lo, loopback0 } tcp dport 8080 drop"),
    ] {
        add_rule(&lab, hook, rule);
        load(&lab);
        assert_eq!((closed(&lab), answering(&clients)), ([8080].into(), [8081].into()), "{hook}: {rule}");
        nft(&lab, "delete table ip mine");
        load(&lab);
        assert_eq!((closed(&lab), answering(&clients)), (BTreeSet::new(), PORTS.into()), "after {rule}");
    }
}

/// A limit of `load` alone: it reads rules once.
#[test]
fn an_agent_follows_rules_and_a_load_does_not() {
    let (lab, _docker, _running) = docker();
    let clients = Clients::new(&lab).or_panic();
    load(&lab);
    add_rule(&lab, "output", "meta skuid 0 tcp dport 8080 drop");
    assert_eq!(answering(&clients), PORTS.into(), "a translated client does not meet the rule");
    let _agent = Background::spawn(&mut lab.wsl_mirror_command(&["run"]).or_panic()).or_panic();
    let soon = |what: &str, expected: &[u16]| {
        let expected = expected.iter().copied().collect();
        wait_until(what, pace::limit(Duration::from_secs(10)), || closed(&lab) == expected);
    };
    soon("the agent to close the port", &[8080]);
    assert_eq!(answering(&clients), [8081].into());
    nft(&lab, "delete table ip mine");
    soon("the agent to open the port", &[]);
    add_rule(&lab, "input", "iifname loopback0 drop");
    soon("the agent to close both ports", &PORTS);
    assert_eq!(answering(&clients), BTreeSet::new());
}

/// It meets translated clients as well. So it need not close a port.
#[test]
fn a_rule_for_a_user_alone_stays_in_force() {
    let (lab, _docker, _running) = docker();
    let clients = Clients::new(&lab).or_panic();
    add_rule(&lab, "output", "meta skuid 0 meta l4proto tcp ct state new drop");
    load(&lab);
    assert_eq!((closed(&lab), answering(&clients)), (BTreeSet::new(), BTreeSet::new()));
    nft(&lab, "delete table ip mine");
    assert_eq!(answering(&clients), PORTS.into());
}

#[test]
fn ufws_default_denies_translated_clients() {
    // After `ufw enable` and `ufw allow 8080`.
    const RULES: &str = include_str!("../../../wsl-mirror-user/src/host/firewall/samples/ufw-allow.save");
    let (lab, _docker, _running) = docker();
    let clients = Clients::new(&lab).or_panic();
    let file = written(&lab, "ufw.save", RULES);
    lab.guest().run("iptables-nft-restore", ["-n", &file]).or_panic();
    assert_eq!(answering(&clients), [8080].into(), "without wsl-mirror");
    load(&lab);
    assert_eq!((closed(&lab), answering(&clients)), ([8081].into(), [8080].into()));
}

#[test]
fn firewallds_public_zone_denies_translated_clients() {
    // After `firewall-cmd --add-port=8080/tcp`.
    const RULES: &str =
        include_str!("../../../wsl-mirror-user/src/host/firewall/samples/firewalld-port.json");
    let (lab, _docker, _running) = docker();
    let clients = Clients::new(&lab).or_panic();
    let file = written(&lab, "firewalld.json", RULES);
    lab.guest().run("nft", ["-j", "-f", &file]).or_panic();
    assert_eq!(answering(&clients), [8080].into(), "without wsl-mirror");
    load(&lab);
    assert_eq!((closed(&lab), answering(&clients)), ([8081].into(), [8080].into()));
}

/// The path of a file in the guest with this text.
#[track_caller]
fn written(lab: &Lab, name: &str, text: &str) -> String {
    let path = format!("{SCRATCH}/{name}");
    lab.guest().enter(|| fs::write(&path, text)).or_panic();
    path
}
