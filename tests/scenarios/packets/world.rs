//! The lab in which frames come to the program, and the model of that lab.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use wsl_mirror_core::{
    abi::{EngineWay, Policy, PortKey, PortPolicy, Protocol, Reason, Service, Target, Verdicts},
    packet::LOCALHOST,
};
use wsl_mirror_lab::{
    GUEST_MAC, Lab, Sockets,
    checks::{self, OrPanic as _, load_with},
    lab_sockets, loopback, nat,
    process::{COMMAND_LIMIT, run_with_input},
    servers,
};
use wsl_mirror_packets::{Sample, TO_US};

use crate::{
    model::{Foreign, Model, UNREACHABLE},
    program::{Program, wait_for_count, wait_for_ipv4_count},
};

/// Part of every configuration.
const COMMON: &str = "owners = [{ name = \"left\", policy = \"pass\" }]\n";
/// After so many frames, and sooner if it takes long, conntrack's table is emptied: entries of flows that get
/// no further than the hook live 5 seconds, and the model knows no time.
const BATCH: usize = 1_000;
const BATCH_LIMIT: Duration = Duration::from_secs(2);
/// Sooner than a datagram's record expires (30 s): the program and the model have different clocks.
const FRAGMENTS_LIMIT: Duration = Duration::from_secs(15);

/// What the program on egress counts: a test may send frames through both programs at once.
const ON_EGRESS: [Reason; 4] =
    [Reason::Returned, Reason::DirectReturned, Reason::NoReply, Reason::ReplyFailed];

/// This machine's address on the containers' network, by which they know it.
const BRIDGE: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);
/// The container of 8086, and that of 8087.
const CONTAINERS: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 20, 0, 2), Ipv4Addr::new(172, 20, 0, 3)];
/// A container that had a port before.
const FORMER: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 4);

/// The containers: a holder's, which its engine's rules lead to by TCP and drop by UDP; and a proxy's, which cannot be
/// reached by UDP.
fn targets(ifindex: u32) -> [((Protocol, u16), Target); 4] {
    let target = |container: Ipv4Addr, port, service, engine_way, ifindex| Target {
        unanswered_at: 0,
        address: container.octets(),
        source: BRIDGE.octets(),
        ifindex,
        port,
        service: service as u8,
        flags: engine_way as u8,
    };
    let [held, served] = CONTAINERS;
    [
        ((Protocol::Tcp, 8086), target(held, 80, Service::Holder, EngineWay::Open, ifindex)),
        ((Protocol::Udp, 8086), target(held, 53, Service::Holder, EngineWay::Dropped, ifindex)),
        ((Protocol::Tcp, 8087), target(served, 443, Service::Proxy, EngineWay::Open, ifindex)),
        ((Protocol::Udp, 8087), target(served, 443, Service::Proxy, EngineWay::Open, UNREACHABLE)),
    ]
}

/// Entries that were there before, where generated frames come by.
fn foreign(alias: [u8; 4], source_alias: [u8; 4]) -> [Foreign; 23] {
    const fn own(protocol: Protocol, ports: (u16, u16)) -> Foreign {
        Foreign {
            protocol,
            from: (LOCALHOST, ports.0),
            to: (LOCALHOST, ports.1),
            state: None,
            translated: None,
            masqueraded: None,
            answered: false,
        }
    }
    let tcp = |ports, state| Foreign { state: Some(state), ..own(Protocol::Tcp, ports) };
    let udp = |ports| own(Protocol::Udp, ports);
    let on_alias = |foreign: Foreign| Foreign { to: (alias, foreign.to.1), ..foreign };
    // What carries a flow: made by an earlier run.
    let ours = |foreign: Foreign| {
        let listener = SocketAddrV4::new(Ipv4Addr::LOCALHOST, foreign.to.1);
        Foreign { translated: Some(listener), ..on_alias(foreign) }
    };
    // The same of a direct flow.
    let direct = |foreign: Foreign, container: Ipv4Addr, port| Foreign {
        from: (source_alias, foreign.from.1),
        translated: Some(SocketAddrV4::new(container, port)),
        masqueraded: Some(BRIDGE),
        ..on_alias(foreign)
    };
    let [held, served] = CONTAINERS;
    let container = Some(SocketAddrV4::new(Ipv4Addr::new(172, 17, 0, 2), 80));
    let redirected = Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8082));
    [
        // Linux to Linux, or from before the load.
        Foreign { answered: true, ..tcp((50_000, 8080), ("ESTABLISHED", 3)) },
        udp((50_000, 8080)),
        // Finished.
        Foreign { answered: true, ..tcp((50_002, 8081), ("TIME_WAIT", 7)) },
        Foreign { answered: true, ..tcp((50_002, 8080), ("CLOSE", 8)) },
        // Caught by an engine's DNAT, or by a redirection of the user's.
        Foreign { translated: container, ..tcp((50_003, 8080), ("SYN_SENT", 1)) },
        Foreign { translated: container, ..udp((50_002, 8080)) },
        Foreign { translated: container, ..udp((50_003, 8081)) },
        Foreign { translated: redirected, ..tcp((50_001, 8081), ("SYN_SENT", 1)) },
        // Carried by an engine.
        Foreign { translated: container, answered: true, ..tcp((50_000, 8081), ("ESTABLISHED", 3)) },
        Foreign { translated: container, answered: true, ..udp((50_001, 8080)) },
        // On the alias: alive, over, strays.
        ours(Foreign { answered: true, ..tcp((8081, 8080), ("ESTABLISHED", 3)) }),
        ours(Foreign { answered: true, ..tcp((50_003, 8080), ("TIME_WAIT", 7)) }),
        on_alias(tcp((50_003, 8081), ("SYN_SENT", 1))),
        // In the way of a flow to a port that was never carried.
        on_alias(udp((50_000, 8085))),
        // Direct flows: alive, over, unanswered, to a container that is gone, strays.
        direct(Foreign { answered: true, ..tcp((50_000, 8086), ("ESTABLISHED", 3)) }, held, 80),
        direct(Foreign { answered: true, ..tcp((50_001, 8087), ("TIME_WAIT", 7)) }, served, 443),
        direct(tcp((50_002, 8087), ("SYN_SENT", 1)), served, 443),
        direct(Foreign { answered: true, ..tcp((50_003, 8087), ("ESTABLISHED", 3)) }, FORMER, 443),
        direct(Foreign { answered: true, ..udp((50_000, 8086)) }, FORMER, 53),
        Foreign { from: (source_alias, 50_001), ..on_alias(udp((50_001, 8086))) },
        // Datagrams that passed before the port had a container.
        udp((50_002, 8086)),
        // Strays in the direction of replies.
        Foreign { from: (alias, 8081), to: (LOCALHOST, 50_001), ..udp((0, 0)) },
        Foreign { from: (alias, 8081), to: (LOCALHOST, 8080), ..tcp((0, 0), ("SYN_SENT", 1)) },
    ]
}

/// Sockets and policies behind the ports that come up often (`wsl_mirror_packets::SERVER_PORTS`), in the guest
/// and in the model of it.
pub struct World {
    pub lab: Lab,
    pub model: Model,
    _servers: Vec<servers::Server>,
    _owners: Vec<Sockets>,
    _connected: UdpSocket,
    /// The listeners with containers behind them.
    holders: Vec<((Protocol, u16), OwnedFd)>,
    /// The interface to the containers.
    ifindex: u32,
    connections: Vec<TcpStream>,
}

impl World {
    /// 8080 and 8081 have listeners, the latter Docker's proxy; 8082 has none, 8083 is exempt, 8084 for TCP, where
    /// somebody listens who is `left` alone ([`COMMON`]); 8085 has a TCP listener on another address and a UDP
    /// socket that hears one client. 8086 and 8087 have containers behind them ([`targets`]), on a network of their own.
    pub fn new() -> Self {
        assert_eq!(TO_US, GUEST_MAC, "generated frames are for loopback0");
        let lab = Lab::builder().build().or_panic();
        // Neighbour discovery and the like would be counted too.
        lab.guest().set_sysctls([("net/ipv6/conf/loopback0/disable_ipv6", "1")]).or_panic();
        lab.windows().set_sysctls([("net/ipv6/conf/winlo0/disable_ipv6", "1")]).or_panic();
        checks::sh(
            &lab,
            &format!(
                "ip link add containers type veth peer name container; ip link set container up; \
                 ip addr add {BRIDGE}/24 dev containers; ip link set containers up"
            ),
        );
        // What engines do.
        lab.guest().set_sysctls([("net/ipv4/ip_forward", "1")]).or_panic();
        let ifindex = checks::ifindex(lab.guest(), "containers");
        let mut model = Model::new();
        let mut servers = Vec::new();
        for (port, address) in [(8080, Ipv4Addr::LOCALHOST), (8083, Ipv4Addr::UNSPECIFIED)] {
            servers.push(servers::tcp_echo(lab.guest(), (address, port)).or_panic());
            servers.push(servers::udp_echo(lab.guest(), (address, port)).or_panic());
            model.listeners.extend(Protocol::ALL.map(|protocol| ((protocol, port), Policy::Unset)));
        }
        let mut owners = Vec::new();
        for (port, name, policy) in [(8081, "docker-proxy", Policy::Steer), (8084, "left", Policy::Pass)] {
            let mut owner = lab_sockets!(&lab, name);
            for protocol in Protocol::ALL {
                let name = protocol.name();
                owner.tell(&format!("bind {name} {name} 0.0.0.0:{port}")).or_panic();
                owner.tell(&format!("serve {name}")).or_panic();
                model.listeners.insert((protocol, port), policy);
            }
            owners.push(owner);
        }
        model.everywhere.extend([8081, 8083, 8084, 8086]);
        let mut holders = Vec::new();
        for (port, address) in [(8086, Ipv4Addr::UNSPECIFIED), (8087, Ipv4Addr::LOCALHOST)] {
            let bind = || -> std::io::Result<[OwnedFd; 2]> {
                Ok([TcpListener::bind((address, port))?.into(), UdpSocket::bind((address, port))?.into()])
            };
            let sockets = lab.guest().enter(bind).or_panic();
            holders.extend(Protocol::ALL.map(|protocol| (protocol, port)).into_iter().zip(sockets));
        }
        for (key, _) in &holders {
            model.listeners.insert(*key, Policy::Unset);
        }
        servers.push(servers::tcp_echo(lab.guest(), (Ipv4Addr::new(10, 255, 255, 254), 8085)).or_panic());
        let client = loopback(50_000);
        let connected = lab
            .guest()
            .enter(|| -> std::io::Result<_> {
                let socket = UdpSocket::bind(loopback(8085))?;
                socket.connect(client)?;
                Ok(socket)
            })
            .or_panic();
        model.connected = Some((client.ip().octets(), client.port(), 8085));
        Self {
            lab,
            model,
            _servers: servers,
            _owners: owners,
            _connected: connected,
            holders,
            ifindex,
            connections: Vec::new(),
        }
    }

    /// Keeps a connection from Windows open.
    pub fn connect(&mut self, connection: TcpStream) {
        self.connections.push(connection);
    }

    /// Loads the program with this configuration, and exempts the ports that shall be.
    pub fn load(&mut self, configuration: &str) {
        load_with(&self.lab, &format!("{configuration}\n{COMMON}"));
        checks::ok(&self.lab, &["exempt", "add", "8083", "8084/tcp"]);
        for (protocol, port) in [(Protocol::Tcp, 8083), (Protocol::Udp, 8083), (Protocol::Tcp, 8084)] {
            let policy = PortPolicy { cli: Policy::Pass as u8, ..PortPolicy::default() };
            self.model.policies.insert(PortKey::new(protocol, port), policy);
        }
    }

    /// Writes the targets anew: no container is known to be silent.
    fn renew_targets(&mut self, program: &mut Program) {
        for (key, target) in targets(self.ifindex) {
            let (_, socket) =
                self.holders.iter().find(|(holder, _)| *holder == key).context("no listener").or_panic();
            program.write_target(socket, target).or_panic();
            self.model.targets.insert(key, target);
        }
    }

    /// Empties conntrack's table, and puts in what others could have there.
    fn renew_conntrack(&mut self) {
        nat::conntrack_flush(self.lab.guest()).or_panic();
        self.model.flush_conntrack();
        let mut entries = String::new();
        for foreign in foreign(self.model.alias, self.model.source_alias) {
            let Foreign { protocol, from, to, .. } = foreign;
            let [source, destination] = [from.0, to.0].map(Ipv4Addr::from);
            write!(
                entries,
                "-I -p {} -s {source} -d {destination} --sport {} --dport {} -t 100",
                protocol.name(),
                from.1,
                to.1
            )
            .or_panic();
            if let Some((name, _)) = foreign.state {
                write!(entries, " --state {name}").or_panic();
            }
            if let Some(to) = foreign.translated {
                write!(entries, " --dst-nat {to}").or_panic();
            }
            if let Some(address) = foreign.masqueraded {
                write!(entries, " --src-nat {address}").or_panic();
            }
            if foreign.answered {
                write!(entries, " -u SEEN_REPLY").or_panic();
            }
            entries.push('\n');
            self.model.insert_foreign(foreign);
        }
        // All by one process: where CPUs are emulated, starting ten takes as long as a thousand frames.
        let mut conntrack = self.lab.guest().command("conntrack");
        run_with_input(conntrack.args(["-R", "-"]), &entries, COMMAND_LIMIT).or_panic().success().or_panic();
    }

    /// Has `deliver` bring every sample to the program on ingress, and compares what the program counts with what the
    /// pure function says over the model. To be called inside the guest.
    pub fn compare(
        &mut self,
        program: &mut Program,
        samples: impl Iterator<Item = Sample>,
        mut deliver: impl FnMut(&Self, &Program, &Sample, Reason),
    ) -> Verdicts {
        self.model.alias = program.alias;
        self.model.source_alias = program.source_alias;
        let mut seen = Verdicts::default();
        let mut started = Instant::now();
        let mut fragments_since = Instant::now();
        for (index, sample) in samples.enumerate() {
            if index % BATCH == 0 || started.elapsed() > BATCH_LIMIT {
                self.renew_conntrack();
                // Long before a minute is over: the program and the model have different clocks.
                self.renew_targets(program);
                started = Instant::now();
            }
            if fragments_since.elapsed() > FRAGMENTS_LIMIT {
                program.forget_fragments().or_panic();
                self.model.forget_fragments();
                fragments_since = Instant::now();
            }
            let expected = self.model.judge(&sample);
            let before = program.counted().or_panic();
            deliver(self, program, &sample, expected);
            let mut counted = match expected {
                Reason::NotIpv4 => wait_for_count(program, &before),
                _ => wait_for_ipv4_count(program, &before),
            };
            counted.retain(|(reason, _)| !ON_EGRESS.contains(reason));
            assert!(
                counted == [(expected, 1)],
                "frame {index}: counted as {counted:?}, the pure function says {expected:?}: {sample:?}"
            );
            *seen.counter(expected) += 1;
        }
        for (port, packets) in &self.model.carried {
            assert_eq!(program.carried(*port).or_panic(), *packets, "PORT_PACKETS of {port:?}");
        }
        seen
    }
}
