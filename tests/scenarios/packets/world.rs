//! The lab in which frames come to the program, and the model of that lab.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use wsl_mirror_core::{
    abi::{Policy, PortKey, Protocol, Verdicts},
    verdict::Decision,
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
    model::{Foreign, Model},
    program::{Program, wait_for_count},
};

/// Part of every configuration.
const COMMON: &str = "owners = [{ name = \"left\", policy = \"pass\" }]\ndelivery = \"plain\"\n";
/// After so many frames, and sooner if it takes long, conntrack's table is emptied: entries of flows that get
/// no further than the hook live 5 seconds, and the model knows no time.
const BATCH: usize = 1_000;
const BATCH_LIMIT: Duration = Duration::from_secs(2);
/// Sooner than a datagram's record expires (30 s): the program and the model have different clocks.
const FRAGMENTS_LIMIT: Duration = Duration::from_secs(15);

/// Entries that others have made, where generated frames come by.
const FOREIGN: [Foreign; 10] = {
    const TCP: Foreign = Foreign {
        protocol: Protocol::Tcp,
        ports: (50_000, 8080),
        state: Some(("ESTABLISHED", 3)),
        translated: None,
        answered: true,
    };
    const CONTAINER: Option<&str> = Some("172.17.0.2:80");
    const UDP: Foreign = Foreign { protocol: Protocol::Udp, state: None, answered: false, ..TCP };
    [
        // Linux to Linux, or from before the load.
        TCP,
        UDP,
        // Finished.
        Foreign { ports: (50_002, 8081), state: Some(("TIME_WAIT", 7)), ..TCP },
        Foreign { ports: (50_002, 8080), state: Some(("CLOSE", 8)), ..TCP },
        // Caught by an engine's DNAT.
        Foreign {
            ports: (50_003, 8080),
            state: Some(("SYN_SENT", 1)),
            translated: CONTAINER,
            answered: false,
            ..TCP
        },
        Foreign { ports: (50_002, 8080), translated: CONTAINER, ..UDP },
        Foreign { ports: (50_003, 8081), translated: CONTAINER, ..UDP },
        // Carried by it.
        Foreign { ports: (50_000, 8081), translated: CONTAINER, ..TCP },
        Foreign { ports: (50_001, 8080), translated: CONTAINER, answered: true, ..UDP },
        // Redirected to a program here, which need not answer at all.
        Foreign {
            ports: (50_001, 8081),
            state: Some(("SYN_SENT", 1)),
            translated: Some("127.0.0.1:8082"),
            answered: false,
            ..TCP
        },
    ]
};

/// Sockets and policies behind the ports that come up often (`wsl_mirror_packets::SERVER_PORTS`), in the guest
/// and in the model of it.
pub struct World {
    pub lab: Lab,
    pub model: Model,
    _servers: Vec<servers::Server>,
    _owners: Vec<Sockets>,
    _connected: UdpSocket,
}

impl World {
    /// 8080 and 8081 have listeners, the latter Docker's proxy; 8082 has none, 8083 is exempt, 8084 for TCP, where
    /// somebody listens who is `left` alone ([`COMMON`]); 8085 has a TCP listener on another address and a UDP
    /// socket that hears one client.
    pub fn new() -> Self {
        assert_eq!(TO_US, GUEST_MAC, "generated frames are for loopback0");
        let lab = Lab::builder().build().or_panic();
        // Neighbour discovery and the like would be counted too.
        lab.guest().set_sysctls([("net/ipv6/conf/loopback0/disable_ipv6", "1")]).or_panic();
        lab.windows().set_sysctls([("net/ipv6/conf/winlo0/disable_ipv6", "1")]).or_panic();
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
        Self { lab, model, _servers: servers, _owners: owners, _connected: connected }
    }

    /// Loads the program with this configuration, and exempts the ports that shall be.
    pub fn load(&mut self, configuration: &str) {
        load_with(&self.lab, &format!("{configuration}\n{COMMON}"));
        checks::ok(&self.lab, &["exempt", "add", "8083", "8084/tcp"]);
        for (protocol, port) in [(Protocol::Tcp, 8083), (Protocol::Udp, 8083), (Protocol::Tcp, 8084)] {
            self.model.policies.insert(PortKey::new(protocol, port), Policy::Pass);
        }
    }

    /// Empties conntrack's table, and puts in what others could have there.
    fn renew_conntrack(&mut self) {
        nat::conntrack_flush(self.lab.guest()).or_panic();
        self.model.flush_conntrack();
        let mut entries = String::new();
        for foreign in FOREIGN {
            let (protocol, (from, to)) = (foreign.protocol.name(), foreign.ports);
            write!(entries, "-I -p {protocol} -s 127.0.0.1 -d 127.0.0.1 --sport {from} --dport {to} -t 100")
                .or_panic();
            if let Some((name, _)) = foreign.state {
                write!(entries, " --state {name}").or_panic();
            }
            if let Some(to) = foreign.translated {
                write!(entries, " --dst-nat {to}").or_panic();
            }
            if foreign.answered {
                write!(entries, " -u SEEN_REPLY").or_panic();
            }
            entries.push('\n');
            self.model.insert(foreign);
        }
        // All by one process: where CPUs are emulated, starting ten takes as long as a thousand frames.
        let mut conntrack = self.lab.guest().command("conntrack");
        run_with_input(conntrack.args(["-R", "-"]), &entries, COMMAND_LIMIT).or_panic().success().or_panic();
    }

    /// Has `deliver` bring every sample to the program, and compares what the program counts with what the pure
    /// function says over the model. To be called inside the guest.
    pub fn compare(
        &mut self,
        program: &mut Program,
        samples: impl Iterator<Item = Sample>,
        mut deliver: impl FnMut(&Program, &Sample, Decision),
    ) -> Verdicts {
        let mut seen = Verdicts::default();
        let mut started = Instant::now();
        let mut fragments_since = Instant::now();
        for (index, sample) in samples.enumerate() {
            if index % BATCH == 0 || started.elapsed() > BATCH_LIMIT {
                self.renew_conntrack();
                started = Instant::now();
            }
            if index % BATCH == BATCH / 2 {
                // From here on it is not remembered who carries the flows that began before.
                program.forget_flows().or_panic();
                self.model.forget_flows();
            }
            if fragments_since.elapsed() > FRAGMENTS_LIMIT {
                program.forget_fragments().or_panic();
                self.model.forget_fragments();
                fragments_since = Instant::now();
            }
            let expected = self.model.judge(&sample);
            let before = program.counted().or_panic();
            deliver(program, &sample, expected);
            let counted = wait_for_count(program, &before);
            assert!(
                counted == [(expected.reason, 1)],
                "frame {index}: counted as {counted:?}, the pure function says {expected:?}: {sample:?}"
            );
            *seen.counter(expected.reason) += 1;
        }
        seen
    }
}
