//! `wsl-mirror status`: the containers behind listeners.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;
use wsl_mirror_core::abi::{EngineWay, Policy, PortKey, Protocol, Service, Target};

use crate::inspect::listeners::Listener;
use crate::inspect::snapshot::Loaded;
use crate::output::{self, BAD, HEADING};

/// A listener with a target.
#[derive(Debug, Serialize)]
pub struct Row {
    port: u16,
    protocol: &'static str,
    /// The address that the listener is bound to.
    listener: IpAddr,
    container: Ipv4Addr,
    container_port: u16,
    /// The address that the container sees as its client.
    source: Ipv4Addr,
    /// `proxy` accepts; `holder` never does.
    service: &'static str,
    /// What the engine's own rules do: `open` or `dropped`.
    engine_way: &'static str,
    /// What firewall rules do to Linux' own clients: `open` or `closed`.
    linux: &'static str,
    /// For how many seconds direct flows are avoided from now on, since one was unanswered; 0: they are not.
    avoided: u64,
}

/// A port whose policy is `direct`, and whose listener has no target.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Untargeted {
    port: u16,
    protocol: &'static str,
}

/// The listeners with a target.
pub fn rows(loaded: &Loaded) -> Vec<Row> {
    loaded.listeners.iter().filter_map(|listener| row(listener, &listener.target?)).collect()
}

fn row(listener: &Listener, target: &Target) -> Option<Row> {
    Some(Row {
        port: listener.key.port,
        protocol: Protocol::from_number(listener.key.protocol)?.name(),
        listener: listener.address,
        container: target.address.into(),
        container_port: target.port,
        source: target.source.into(),
        service: match target.service() {
            Service::Proxy => "proxy",
            Service::Holder => "holder",
        },
        engine_way: match target.engine_way() {
            EngineWay::Open => "open",
            EngineWay::Dropped => "dropped",
        },
        linux: if target.is_open_to_linux() { "open" } else { "closed" },
        avoided: listener.avoided.map_or(0, |left| left.as_secs() + 1),
    })
}

/// The ports whose flows pass although their policy is `direct`: no container is known behind their listeners.
pub fn untargeted(loaded: &Loaded) -> Vec<Untargeted> {
    let direct =
        |key: &PortKey| loaded.policies.get(key).is_some_and(|written| written.effective() == Policy::Direct);
    let on_localhost =
        loaded.listeners.iter().filter(|listener| listener.is_on_localhost() && direct(&listener.key));
    let without: BTreeSet<PortKey> = on_localhost
        .clone()
        .filter(|listener| listener.target.is_none())
        .map(|listener| listener.key)
        .collect();
    // One port may have a listener on 127.0.0.1 and another, of an engine, on all addresses.
    let with: BTreeSet<PortKey> =
        on_localhost.filter(|listener| listener.target.is_some()).map(|listener| listener.key).collect();
    let ports = without.difference(&with).filter_map(|key| {
        Some(Untargeted { port: key.port, protocol: Protocol::from_number(key.protocol)?.name() })
    });
    ports.collect()
}

/// Both, for people.
pub fn text(loaded: &Loaded) -> Vec<String> {
    let mut text = Vec::new();
    let untargeted: Vec<String> =
        untargeted(loaded).iter().map(|of| format!("{}/{}", of.port, of.protocol)).collect();
    if !untargeted.is_empty() {
        text.push(format!(
            "direct   {BAD}no container is known{BAD:#} behind {}: their flows pass",
            untargeted.join(", ")
        ));
    }
    let rows: Vec<_> = rows(loaded).iter().map(cells).collect();
    if !rows.is_empty() {
        let headings = ["listener", "container", "sees", "held by", "engine's way", "Linux", "direct"];
        text.push(format!("\n{HEADING}containers{HEADING:#}"));
        text.push(output::table(headings, &[], rows));
    }
    text
}

fn cells(row: &Row) -> [String; 7] {
    let listener = match row.listener {
        IpAddr::V4(address) => format!("{address}:{}/{}", row.port, row.protocol),
        IpAddr::V6(address) => format!("[{address}]:{}/{}", row.port, row.protocol),
    };
    let direct = match (row.avoided, row.service) {
        (0, _) => "possible".to_owned(),
        (seconds, "proxy") => format!("unanswered, steered for another {seconds} s"),
        (seconds, _) if row.engine_way == "dropped" => {
            format!("unanswered {} s ago", 61_u64.saturating_sub(seconds))
        }
        (seconds, _) => format!("unanswered, passed for another {seconds} s"),
    };
    [
        listener,
        format!("{}:{}", row.container, row.container_port),
        row.source.to_string(),
        row.service.to_owned(),
        row.engine_way.to_owned(),
        row.linux.to_owned(),
        direct,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::snapshot::tests::loaded;
    use std::time::Duration;
    use wsl_mirror_core::abi::PortPolicy;

    fn listener(address: &str, port: u16, service: Service) -> Listener {
        Listener {
            key: PortKey::new(Protocol::Tcp, port),
            address: address.parse().unwrap(),
            target: Some(Target {
                address: [172, 17, 0, 2],
                source: [172, 17, 0, 1],
                port: 80,
                service: service as u8,
                ..Target::default()
            }),
            avoided: None,
        }
    }

    fn with(listeners: &[Listener], direct: &[u16]) -> Loaded {
        let policy = PortPolicy { cli: Policy::Direct as u8, ..PortPolicy::default() };
        let policies = direct.iter().map(|port| (PortKey::new(Protocol::Tcp, *port), policy)).collect();
        Loaded { listeners: listeners.to_vec(), policies, ..loaded() }
    }

    fn plain(loaded: &Loaded) -> String {
        anstream::adapter::strip_str(&text(loaded).join("\n")).to_string()
    }

    #[test]
    fn people_see_containers_and_whether_they_are_avoided() {
        let steered = Listener {
            avoided: Some(Duration::from_millis(41_500)),
            ..listener("0.0.0.0", 8080, Service::Proxy)
        };
        let holder = Listener { avoided: steered.avoided, ..listener("::", 8081, Service::Holder) };
        let mut dropped =
            Listener { avoided: steered.avoided, ..listener("127.0.0.1", 8082, Service::Holder) };
        let flags = Target::DROPPED | Target::CLOSED_TO_LINUX;
        dropped.target = dropped.target.map(|target| Target { flags, ..target });
        let text = plain(&with(&[steered, holder, dropped, listener("0.0.0.0", 9000, Service::Proxy)], &[]));
        let line = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let rest = "172.17.0.2:80 172.17.0.1";
        assert_eq!(
            line("0.0.0.0:8080"),
            format!("0.0.0.0:8080/tcp {rest} proxy open open unanswered, steered for another 42 s")
        );
        assert_eq!(
            line("[::]:8081"),
            format!("[::]:8081/tcp {rest} holder open open unanswered, passed for another 42 s")
        );
        assert_eq!(
            line("127.0.0.1:8082"),
            format!("127.0.0.1:8082/tcp {rest} holder dropped closed unanswered 19 s ago")
        );
        assert_eq!(line("0.0.0.0:9000"), format!("0.0.0.0:9000/tcp {rest} proxy open open possible"));
    }

    #[test]
    fn ports_that_are_direct_without_a_container_are_named() {
        let without = |address, port| Listener { target: None, ..listener(address, port, Service::Holder) };
        let listeners = [
            without("0.0.0.0", 22),
            without("127.0.0.1", 23),
            without("::1", 24),
            without("0.0.0.0", 25),
            listener("0.0.0.0", 26, Service::Proxy),
            without("127.0.0.1", 27),
            listener("0.0.0.0", 27, Service::Proxy),
        ];
        let loaded = with(&listeners, &[22, 23, 24, 26, 27, 28]);
        let first = plain(&loaded).lines().next().unwrap().to_owned();
        assert_eq!(first, "direct   no container is known behind 22/tcp, 23/tcp: their flows pass");
        assert!(text(&with(&[], &[])).is_empty());
    }
}
