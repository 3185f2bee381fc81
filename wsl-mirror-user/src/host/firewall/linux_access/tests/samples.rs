//! What real firewalls and engines write.
//!
//! Captured from ufw 0.36.2 and firewalld 1.3.3. firewalld's rules are those of its own Python modules without D-Bus.

use super::super::super::put_together;
use super::*;
use crate::host::tool::Unread;

macro_rules! sample {
    ($name:literal) => {
        include_str!(concat!("../../samples/", $name))
    };
}

/// What `nft` and `iptables-nft-save` say.
fn read(nft: Option<&str>, iptables_nft: Option<&str>) -> LinuxAccess {
    let said = |text: Option<&str>| text.map_or(Err(Unread::NotInstalled), |text| Ok(text.to_owned()));
    put_together(said(nft), said(iptables_nft), Ok(String::new()), &[]).linux_access()
}

/// What `iptables-legacy-save` says, beside WSL's own tables.
fn read_legacy(text: &str) -> LinuxAccess {
    let text = text.replace(" v1.8.9 (nf_tables)", " v1.8.9").replace("iptables-nft-save", "iptables-save");
    let tables = ["raw".to_owned(), "nat".to_owned()];
    put_together(Ok(sample!("wsl.json").into()), Err(Unread::NotInstalled), Ok(text), &tables).linux_access()
}

#[test]
fn ufw_closes_what_it_does_not_allow() {
    for (name, access) in [
        ("nft and iptables-nft-save", read(Some(sample!("ufw.json")), Some(sample!("ufw.save")))),
        ("iptables-nft-save", read(None, Some(sample!("ufw.save")))),
        ("iptables-legacy-save", read_legacy(sample!("ufw.save"))),
        // Its matches are unknown then.
        ("nft alone", read(Some(sample!("ufw.json")), None)),
    ] {
        assert_eq!(closed(&access), ALL, "{name}");
    }
    for access in [read(None, Some(sample!("ufw-allow.save"))), read_legacy(sample!("ufw-allow.save"))] {
        assert_eq!(closed(&access), [(Tcp, 8081)]);
    }
    // It accepts what leaves by `lo`, and denies what leaves by a bridge.
    let denies_output = sample!("ufw-deny-out.save");
    assert_eq!(closed(&read(None, Some(denies_output))), ALL);
}

#[test]
fn ufw_that_lets_loopback0_in_closes_nothing() {
    // `ufw allow in on loopback0`
    let rule = "-A ufw-user-input -i loopback0 -j ACCEPT\n-A ufw-user-limit -m limit";
    let text = sample!("ufw.save").replacen("-A ufw-user-limit -m limit", rule, 1);
    assert_eq!(closed(&read(None, Some(&text))), NONE);
}

#[test]
fn firewalld_closes_what_its_zone_does_not_open() {
    assert_eq!(closed(&read(Some(sample!("firewalld.json")), None)), ALL);
    assert_eq!(closed(&read(Some(sample!("firewalld-port.json")), None)), [(Tcp, 8081), (Udp, 8080)]);
    // loopback0 is in the zone `trusted`.
    assert_eq!(closed(&read(Some(sample!("firewalld-trusted.json")), None)), NONE);
}

/// The ports that the samples of engines publish, as in the tests of publications.
const PUBLISHED: [(Protocol, u16, u16); 8] = [
    (Tcp, 8080, 80),
    (Tcp, 8081, 80),
    (Tcp, 8082, 80),
    (Udp, 5300, 53),
    (Udp, 5301, 53),
    (Tcp, 9000, 7000),
    (Tcp, 9003, 7003),
    (Udp, 8081, 80),
];

#[test]
fn engines_and_wsl_close_nothing() {
    let docker = ("docker0", [172, 17, 0, 0]);
    let podman = ("podman0", [10, 88, 0, 0]);
    for (name, access, (bridge, network)) in [
        ("wsl", read(Some(sample!("wsl.json")), None), docker),
        ("docker20", read(None, Some(sample!("docker20-no-proxy.save"))), docker),
        ("docker20, legacy", read_legacy(sample!("docker20-no-proxy.save")), docker),
        ("docker28", read(Some(sample!("docker28.json")), Some(sample!("docker28.save"))), docker),
        ("docker28, nft alone", read(Some(sample!("docker28.json")), None), docker),
        (
            "docker28-wsl",
            read(Some(sample!("docker28-wsl.json")), Some(sample!("docker28-wsl.save"))),
            docker,
        ),
        ("docker28-legacy", read_legacy(sample!("docker28-legacy.save")), docker),
        ("docker28-wsl-legacy", read_legacy(sample!("docker28-wsl-legacy.save")), docker),
        (
            "docker28-no-proxy",
            read(Some(sample!("docker28-no-proxy.json")), Some(sample!("docker28-no-proxy.save"))),
            docker,
        ),
        ("docker28-no-proxy, nft alone", read(Some(sample!("docker28-no-proxy.json")), None), docker),
        ("docker28-no-proxy-wsl", read(None, Some(sample!("docker28-no-proxy-wsl.save"))), docker),
        ("docker28-proxy-wsl", read(None, Some(sample!("docker28-proxy-wsl.save"))), docker),
        ("docker29", read(Some(sample!("docker29-no-proxy.json")), None), docker),
        ("docker29-wsl", read(Some(sample!("docker29-wsl-no-proxy.json")), None), docker),
        ("podman4", read(None, Some(sample!("podman4.save"))), podman),
        ("podman4, legacy", read_legacy(sample!("podman4.save")), podman),
        ("podman4-cni", read(None, Some(sample!("podman4-cni.save"))), podman),
        ("podman5", read(Some(sample!("podman5.json")), None), podman),
        ("netavark2.1", read(Some(sample!("netavark2.1.json")), None), podman),
        ("cni-nft", read(Some(sample!("cni-nft.json")), None), podman),
    ] {
        let address = |last: u8| Ipv4Addr::from([network[0], network[1], network[2], last]);
        for (protocol, port, container_port) in PUBLISHED {
            let container = (address(2), container_port);
            let translated = Translated { container, source: address(1), bridge };
            assert_eq!(access.to(protocol, port, &translated), Access::Open, "{name}: {protocol:?} {port}");
        }
    }
}

#[test]
fn engines_beside_a_firewall_leave_its_rules_in_force() {
    let filter = |text: &str| {
        let (_, rest) = text.split_once("*filter\n").unwrap();
        rest.split_once("COMMIT").unwrap().0.to_owned()
    };
    let text = sample!("docker28-no-proxy-wsl.save");
    let of_docker = filter(text);
    let is_its_own =
        |line: &&str| ![":INPUT", ":FORWARD", ":OUTPUT"].iter().any(|chain| line.starts_with(chain));
    let its_own: Vec<&str> = of_docker.lines().filter(is_its_own).collect();
    let of_both = filter(sample!("ufw-allow.save")) + &its_own.join("\n") + "\n";
    let both = text.replace(&of_docker, &of_both);
    assert_eq!(closed(&read(None, Some(&both))), [(Tcp, 8081)]);
    assert_eq!(closed(&read(Some(sample!("wsl.json")), Some(&both))), [(Tcp, 8081)]);
}
