//! The attacked network: containers, published ports, services, live flows; and who attacks.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io::ErrorKind,
    net::{Ipv4Addr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use wsl_mirror_core::abi::{EngineWay, Service, Target};
use wsl_mirror_lab::{
    BRIDGE, BRIDGE_MAC, GUEST_MAC, Lab, Namespace, WINDOWS_MAC,
    checks::{HELLO, OrPanic as _, STEER, ifindex, load_with, wait_until, windows, windows_udp},
    pace,
    raw::RawSocket,
    servers, targets, tcp,
};

use super::forgery::Address;

/// A service of the guest on 127.0.0.1.
pub const ON_LOCALHOST: u16 = 8101;
/// A service of the guest on all addresses.
pub const ON_ALL: u16 = 8102;
/// A container's port that an engine's rules publish. The guest's listener on it stands for docker-proxy.
pub const PUBLISHED: u16 = 8080;
/// A service of Windows on its 127.0.0.1; no frame for it is sent to the guest.
pub const ON_WINDOWS: u16 = 9100;
/// The container's own port.
pub const IN_CONTAINER: u16 = 80;

/// The guest's services, each with the port of Windows' client in the live flows to it.
pub const FLOWS: [(u16, u16); 3] = [(ON_LOCALHOST, 41_001), (ON_ALL, 41_002), (PUBLISHED, 41_003)];

const ATTACKER: u8 = 2;
const SERVER: u8 = 3;
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 20);
const NEIGHBOUR_MAC: [u8; 6] = [0x02, 0x00, 0x00, 0x00, 0x00, 0x20];

/// What depends on the machine that is attacked.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Whether the bridge takes packets from and to 127.0.0.0/8: Docker's has it without docker-proxy.
    pub bridge_routes_localnet: bool,
    /// The policy of the FORWARD chain.
    pub forward: &'static str,
}

impl Machine {
    pub const ALL: [Self; 4] = [
        Self { bridge_routes_localnet: false, forward: "accept" },
        Self { bridge_routes_localnet: false, forward: "drop" },
        Self { bridge_routes_localnet: true, forward: "accept" },
        Self { bridge_routes_localnet: true, forward: "drop" },
    ];

    /// Docker's rules, with docker-proxy or without.
    fn rules(&self) -> String {
        let forward = self.forward;
        let (not_bridge, hairpin) = if self.bridge_routes_localnet {
            (String::new(), format!("fib saddr type local oifname {BRIDGE} masquerade"))
        } else {
            (format!("iifname != {BRIDGE}"), String::new())
        };
        // Docker 28's chain in raw: nobody reaches a container's own address from outside.
        format!(
            "table ip engine {{
               chain raw {{ type filter hook prerouting priority raw;
                 ip daddr 172.30.0.{SERVER} iifname != {BRIDGE} drop
               }}
               chain pre {{ type nat hook prerouting priority dstnat;
                 fib daddr type local {not_bridge} meta l4proto {{tcp, udp}} th dport {PUBLISHED} \
                   dnat to 172.30.0.{SERVER}:{IN_CONTAINER}
               }}
               chain post {{ type nat hook postrouting priority srcnat;
                 ip saddr 172.30.0.0/24 oifname != {BRIDGE} masquerade
                 {hairpin}
               }}
               chain forward {{ type filter hook forward priority filter; policy {forward};
                 oifname {BRIDGE} ct state established,related accept
                 iifname {BRIDGE} accept
                 iifname != {BRIDGE} oifname {BRIDGE} ip daddr 172.30.0.{SERVER} \
                   meta l4proto {{tcp, udp}} th dport {IN_CONTAINER} accept
               }}
             }}"
        )
    }
}

/// The attacked network.
pub struct Network {
    pub lab: Lab,
    pub server: Namespace,
    attacker: Namespace,
    /// The services; the guest's on [`PUBLISHED`] first.
    servers: Vec<servers::Server>,
}

/// How the published port is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// To the guest's listener.
    Steered,
    /// To the container.
    Direct,
}

impl Network {
    #[track_caller]
    pub fn new(machine: Machine) -> Self {
        let lab = Lab::builder().build().or_panic();
        lab.add_bridge().or_panic();
        let attacker = lab.add_bare_container(ATTACKER).or_panic();
        let server = lab.add_bare_container(SERVER).or_panic();
        if machine.bridge_routes_localnet {
            let name = format!("net/ipv4/conf/{BRIDGE}/route_localnet");
            lab.guest().set_sysctls([(name.as_str(), "1")]).or_panic();
        }
        lab.guest().run("nft", [machine.rules()]).or_panic();
        let neighbour = NEIGHBOUR_MAC.map(|byte| format!("{byte:02x}")).join(":");
        // The LAN's router too: nothing shall wait for ARP.
        let known = ["192.168.50.20", "192.168.50.1"]
            .map(|address| format!("neigh add {address} lladdr {neighbour} dev eth0 nud permanent\n"));
        lab.guest().batch("ip", &[], &known.concat()).or_panic();
        // Else it is a matter of time which packets get an ICMP error for an answer.
        lab.guest().set_sysctls([("net/ipv4/icmp_ratemask", "0")]).or_panic();
        let (guest, all) = (lab.guest(), Ipv4Addr::UNSPECIFIED);
        let places = [
            (guest, all, PUBLISHED),
            (guest, Ipv4Addr::LOCALHOST, ON_LOCALHOST),
            (guest, all, ON_ALL),
            (lab.windows(), Ipv4Addr::LOCALHOST, ON_WINDOWS),
            (&server, all, IN_CONTAINER),
        ];
        let both = |(namespace, address, port): (&Namespace, _, _)| {
            [servers::tcp_echo(namespace, (address, port)), servers::udp_echo(namespace, (address, port))]
        };
        let servers = places.into_iter().flat_map(both).map(|server| server.or_panic()).collect();
        // A bridge forwards when the kernel has noticed its ports' carriers, up to a second later.
        for (from, to) in [(guest, (SERVER, IN_CONTAINER)), (&attacker, (1, ON_ALL))] {
            let to = (Ipv4Addr::new(172, 30, 0, to.0), to.1);
            wait_until("the containers to be reached", Duration::from_secs(5), || {
                let limit = pace::limit(Duration::from_millis(200));
                tcp::Client::new(from, to).limit(limit).reset_on_close().echo(HELLO).is_ok()
            });
        }
        Self { lab, server, attacker, servers }
    }

    /// Loads, so that flows to the guest's services are steered, and those to the published port as told.
    #[track_caller]
    pub fn load(&self, carried: Carried) {
        match carried {
            Carried::Steered => load_with(&self.lab, STEER),
            Carried::Direct => {
                load_with(&self.lab, &format!("path = \"direct\"\n{STEER}"));
                let target = Target {
                    unanswered_at: 0,
                    address: [172, 30, 0, SERVER],
                    source: [172, 30, 0, 1],
                    ifindex: ifindex(self.lab.guest(), BRIDGE),
                    port: IN_CONTAINER,
                    service: Service::Proxy as u8,
                    flags: EngineWay::Open as u8,
                };
                for server in &self.servers[..2] {
                    targets::write(self.lab.guest(), server, target).or_panic();
                }
            }
        }
    }

    /// One attacker in each place.
    #[track_caller]
    pub fn attackers(&self) -> BTreeMap<Place, Attacker> {
        Place::ALL.into_iter().map(|place| (place, self.attacker(place))).collect()
    }

    /// Somebody who sends forgeries.
    #[track_caller]
    pub fn attacker(&self, place: Place) -> Attacker {
        let (namespace, nic, destination, source) = match place {
            Place::Container => (&self.attacker, "eth0", BRIDGE_MAC, mac(&self.attacker, "eth0")),
            Place::Neighbour => (self.lab.windows(), "winlan0", mac(self.lab.guest(), "eth0"), NEIGHBOUR_MAC),
            Place::Windows => (self.lab.windows(), "winlo0", GUEST_MAC, WINDOWS_MAC),
        };
        let ethernet = [destination.as_slice(), &source, &[0x08, 0x00]].concat();
        let socket = RawSocket::sender(namespace, nic).or_panic();
        Attacker { socket, ethernet, sent: Cell::new(0) }
    }
}

#[track_caller]
fn mac(namespace: &Namespace, nic: &str) -> [u8; 6] {
    let shown = namespace.run("ip", ["-br", "link", "show", "dev", nic]).or_panic().stdout;
    let text = shown.split_whitespace().nth(2).unwrap_or_default();
    let bytes: Vec<_> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let Ok(mac) = bytes.try_into() else { panic!("no MAC in {shown}") };
    mac
}

/// Where an attacker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a container with `CAP_NET_RAW`.
    Container,
    /// On the LAN, behind `eth0`.
    Neighbour,
    /// On Windows, by `loopback0`.
    Windows,
}

impl Place {
    pub const ALL: [Self; 3] = [Self::Container, Self::Neighbour, Self::Windows];

    /// The address that an attacker here has.
    pub const fn own(self) -> Address {
        match self {
            Self::Container => [172, 30, 0, ATTACKER],
            Self::Neighbour => NEIGHBOUR.octets(),
            Self::Windows => [192, 168, 50, 10],
        }
    }
}

/// Sends IPv4 packets from one place.
pub struct Attacker {
    socket: RawSocket,
    ethernet: Vec<u8>,
    sent: Cell<u32>,
}

impl Attacker {
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        self.socket.send(&[&self.ethernet, packet].concat()).or_panic();
        self.sent.set(self.sent.get() + 1);
        // A busy kernel drops what comes faster (net.core.netdev_max_backlog), and the tests compare what comes.
        if self.sent.get().is_multiple_of(100) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Windows' live flows to one service of the guest.
pub struct Live {
    pub port: u16,
    tcp: TcpStream,
    udp: UdpSocket,
}

impl Live {
    /// Begins the flows.
    #[track_caller]
    pub fn begin(lab: &Lab, port: u16, client: u16) -> Self {
        let tcp = windows(lab, port).from_port(client).reset_on_close().connect().or_panic();
        let udp = windows_udp(lab, port).from_port(client).connect().or_panic();
        let mut live = Self { port, tcp, udp };
        assert_eq!(live.survives(), Vec::<String>::new(), "flows that begin");
        live
    }

    /// One exchange over each flow: what has failed.
    pub fn survives(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        if let Err(failure) = tcp::exchange(&mut self.tcp, HELLO) {
            failed.push(format!("TCP {}: {failure}", self.port));
        }
        if let Err(error) = self.datagram() {
            failed.push(format!("UDP {}: {error}", self.port));
        }
        failed
    }

    /// A request whose answer comes, past whatever else has come.
    fn datagram(&self) -> std::io::Result<()> {
        self.udp.send(HELLO)?;
        let mut buffer = [0; 4096];
        loop {
            match self.udp.recv(&mut buffer) {
                Ok(length) if &buffer[..length] == HELLO => return Ok(()),
                Ok(_) => {}
                // Of an earlier datagram.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.udp.send(HELLO)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
