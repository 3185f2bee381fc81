//! A published port with everything in the test's hand: containers that say who they are, the engine's rules, and in the
//! guest the listener that stands for docker-proxy or for a holder. Its target is the test's to write.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    time::Duration,
};

use wsl_mirror_core::abi::{EngineWay, Protocol, Service, Target};

use super::who::{Who, who};
use crate::{
    BRIDGE, Lab, LabBuilder, Namespace,
    checks::{OrPanic as _, ifindex, load_with, wait_until},
    pace,
    servers::{self, Server},
    services::TcpService,
    targets, tcp,
};

/// The published port, on every address.
pub const PORT: u16 = 8080;
/// Windows does not hear of it when the guest binds this port: a client of Windows may have it, too.
pub const UNREPORTED: u16 = 40_001;
/// The containers' port.
pub const IN_CONTAINER: u16 = 80;
/// What docker-proxy's stand-in says who it is.
pub const PROXY: u64 = 0;
/// The container to which the engine's rules lead, and the target at first.
pub const FIRST: u8 = 3;
/// Another container.
pub const SECOND: u8 = 4;
/// The bridge's address.
pub const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// The configuration of most tests.
pub const DIRECT: &str = "path = \"direct\"\n";

/// The guest's listeners on the published port.
enum Listeners {
    /// There are none.
    None,
    /// They answer.
    Proxy([Server; 2]),
    /// They never do.
    Holder(TcpListener, UdpSocket),
}

/// The machine.
pub struct Machine {
    /// Where it is.
    pub lab: Lab,
    containers: BTreeMap<u8, Namespace>,
    listeners: RefCell<Listeners>,
    service: Service,
    _servers: Vec<Server>,
}

impl Machine {
    /// One whose published port a process of this kind holds. Nothing is loaded.
    #[track_caller]
    pub fn new(service: Service) -> Self {
        Self::in_lab(Lab::builder(), service)
    }

    /// The same in another lab.
    #[track_caller]
    pub fn in_lab(lab: LabBuilder, service: Service) -> Self {
        let lab = lab.sends_always([PORT..=PORT]).ignored_ports([UNREPORTED]).build().or_panic();
        lab.add_bridge().or_panic();
        let containers: BTreeMap<_, _> = [FIRST, SECOND]
            .into_iter()
            .map(|number| (number, lab.add_bare_container(number).or_panic()))
            .collect();
        lab.guest().run("nft", [rules(service)]).or_panic();
        if service == Service::Holder {
            let name = format!("net/ipv4/conf/{BRIDGE}/route_localnet");
            lab.guest().set_sysctls([(name.as_str(), "1")]).or_panic();
        }
        let servers = containers
            .iter()
            .flat_map(|(number, container)| named(container, IN_CONTAINER, (*number).into()));
        let servers = servers.collect();
        for number in [FIRST, SECOND] {
            let to = (Ipv4Addr::new(172, 30, 0, number), IN_CONTAINER);
            // A bridge forwards when the kernel has noticed its ports' carriers.
            wait_until("the containers to be reached", Duration::from_secs(5), || {
                let limit = pace::limit(Duration::from_millis(100));
                who(&tcp::Client::new(lab.guest(), to).limit(limit).reset_on_close()).is_ok()
            });
        }
        let listeners = RefCell::new(Listeners::None);
        let machine = Self { lab, containers, listeners, service, _servers: servers };
        machine.listen();
        machine
    }

    /// The process binds the published port: anew, without a target.
    #[track_caller]
    pub fn listen(&self) {
        let guest = self.lab.guest();
        let all = (Ipv4Addr::UNSPECIFIED, PORT);
        let listeners = match self.service {
            Service::Proxy => Listeners::Proxy(named(guest, PORT, PROXY)),
            Service::Holder => Listeners::Holder(
                servers::tcp_holder(guest, all).or_panic(),
                guest.enter(|| UdpSocket::bind(all)).or_panic(),
            ),
        };
        *self.listeners.borrow_mut() = listeners;
    }

    /// The process ends.
    pub fn unlisten(&self) {
        *self.listeners.borrow_mut() = Listeners::None;
    }

    /// The same, loaded with `path = "direct"`, the first container its target.
    #[track_caller]
    pub fn direct(service: Service) -> Self {
        let machine = Self::new(service);
        machine.load(DIRECT);
        machine
    }

    /// Loads with this configuration. The first container is the target.
    #[track_caller]
    pub fn load(&self, configuration: &str) {
        load_with(&self.lab, configuration);
        self.aim(FIRST);
    }

    /// The target that leads to this container.
    #[track_caller]
    pub fn target(&self, container: u8) -> Target {
        Target {
            unanswered_at: 0,
            address: [172, 30, 0, container],
            source: BRIDGE_ADDRESS.octets(),
            ifindex: ifindex(self.lab.guest(), BRIDGE),
            port: IN_CONTAINER,
            service: self.service as u8,
            flags: EngineWay::Open as u8,
        }
    }

    /// Gives both listeners the target that leads to this container.
    #[track_caller]
    pub fn aim(&self, container: u8) {
        self.write(self.target(container));
    }

    /// Gives both listeners this target.
    #[track_caller]
    pub fn write(&self, target: Target) {
        let guest = self.lab.guest();
        match &*self.listeners.borrow() {
            Listeners::Proxy(servers) => {
                for server in servers {
                    targets::write(guest, server, target).or_panic();
                }
            }
            Listeners::Holder(tcp, udp) => {
                targets::write(guest, tcp, target).or_panic();
                targets::write(guest, udp, target).or_panic();
            }
            Listeners::None => panic!("nobody listens"),
        }
    }

    /// Takes both listeners' targets away.
    #[track_caller]
    pub fn forget_targets(&self) {
        let guest = self.lab.guest();
        match &*self.listeners.borrow() {
            Listeners::Proxy(servers) => {
                for server in servers {
                    targets::remove(guest, server).or_panic();
                }
            }
            Listeners::Holder(tcp, udp) => {
                targets::remove(guest, tcp).or_panic();
                targets::remove(guest, udp).or_panic();
            }
            Listeners::None => panic!("nobody listens"),
        }
    }

    /// Publishes another TCP port of the first container, by a stand-in for docker-proxy. The load was before.
    #[track_caller]
    pub fn publish(&self, port: u16, in_container: u16) -> Server {
        let guest = self.lab.guest();
        let named = TcpService::Named { number: PROXY };
        let server = servers::tcp(guest, (Ipv4Addr::UNSPECIFIED, port), named).or_panic();
        targets::write(guest, &server, Target { port: in_container, ..self.target(FIRST) }).or_panic();
        server
    }

    /// The first container.
    pub fn container(&self) -> &Namespace {
        &self.containers[&FIRST]
    }

    /// The target of the TCP listener as it is now, or that of the UDP socket.
    #[track_caller]
    pub fn read(&self, protocol: Protocol) -> Target {
        let guest = self.lab.guest();
        let target = match (&*self.listeners.borrow(), protocol) {
            (Listeners::Proxy([tcp, _]), Protocol::Tcp) => targets::read(guest, tcp),
            (Listeners::Proxy([_, udp]), Protocol::Udp) => targets::read(guest, udp),
            (Listeners::Holder(tcp, _), Protocol::Tcp) => targets::read(guest, tcp),
            (Listeners::Holder(_, udp), Protocol::Udp) => targets::read(guest, udp),
            (Listeners::None, _) => panic!("nobody listens"),
        };
        match target.or_panic() {
            Some(target) => target,
            None => panic!("the listener has no target"),
        }
    }

    /// How many packets got their verdict for this reason.
    #[track_caller]
    pub fn packets(&self, reason: &str) -> u64 {
        self.lab.packets(reason).or_panic()
    }

    /// The answer of this container, as its client has the bridge's address.
    pub fn is_from(container: u8, who: &Who) -> bool {
        who.number == u64::from(container) && *who.client.ip() == BRIDGE_ADDRESS
    }

    /// The same for docker-proxy's stand-in: it sees Windows' client.
    pub fn is_from_proxy(who: &Who) -> bool {
        who.number == PROXY && *who.client.ip() == Ipv4Addr::LOCALHOST
    }
}

/// TCP and UDP services of this number on every address.
#[track_caller]
pub fn named(namespace: &Namespace, port: u16, number: u64) -> [Server; 2] {
    let address = (Ipv4Addr::UNSPECIFIED, port);
    [
        servers::tcp(namespace, address, TcpService::Named { number }).or_panic(),
        servers::udp(namespace, address, Some(number)).or_panic(),
    ]
}

/// Docker's rules, with docker-proxy or without it.
fn rules(service: Service) -> String {
    let (not_bridge, hairpin) = match service {
        Service::Proxy => (format!("iifname != {BRIDGE}"), ""),
        Service::Holder => (String::new(), "fib saddr type local oifname lab-bridge masquerade"),
    };
    format!(
        "table ip engine {{
           chain raw {{ type filter hook prerouting priority raw;
             ip daddr 172.30.0.{FIRST} iifname != {BRIDGE} drop
           }}
           chain pre {{ type nat hook prerouting priority dstnat;
             fib daddr type local {not_bridge} meta l4proto {{tcp, udp}} th dport {PORT} \
               dnat to 172.30.0.{FIRST}:{IN_CONTAINER}
           }}
           chain post {{ type nat hook postrouting priority srcnat;
             ip saddr 172.30.0.0/24 oifname != {BRIDGE} masquerade
             {hairpin}
           }}
           chain forward {{ type filter hook forward priority filter; policy drop;
             oifname {BRIDGE} ct state established,related accept
             iifname {BRIDGE} accept
             iifname != {BRIDGE} oifname {BRIDGE} meta l4proto {{tcp, udp}} th dport {{ {IN_CONTAINER}-99 }} accept
           }}
         }}"
    )
}
