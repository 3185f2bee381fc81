//! docker-proxy says by its arguments which container it serves.
//!
//! All releases have the same flags (`cmd/docker-proxy` of moby, Go's `flag`):
//! `-proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80`, and `-use-listen-fd` from 28.0
//! on.

use std::net::{IpAddr, Ipv4Addr};

use wsl_mirror_core::abi::{Owner, Protocol};

use super::sockets::{Holder, Served};

/// Who a docker-proxy is. Any user may give a program this name, so only root's counts.
pub const OWNER: Owner = Owner::new(b"docker-proxy", 0);

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address on this machine.
    pub host: IpAddr,
    /// Host order.
    pub host_port: u16,
    /// The container's address.
    pub container: IpAddr,
    /// Host order.
    pub container_port: u16,
}

/// What the process says that it serves. `None` if it is not docker-proxy, is gone, or says something else.
pub fn read(holder: &Holder) -> Option<Publication> {
    if holder.owner != OWNER {
        return None;
    }
    let publication = parse(&std::fs::read(format!("/proc/{}/cmdline", holder.pid)).ok()?)?;
    // The number may stand for another process by now.
    holder.is_alive().then_some(publication)
}

/// What these arguments say, each with a zero behind it, the program's name first.
pub fn parse(arguments: &[u8]) -> Option<Publication> {
    let arguments = std::str::from_utf8(arguments).ok()?;
    let mut arguments = arguments.strip_suffix('\0').unwrap_or(arguments).split('\0').skip(1);
    let (mut protocol, mut host, mut container) = (Some(Protocol::Tcp), None, None);
    let (mut host_port, mut container_port) = (None, None);
    while let Some(argument) = arguments.next() {
        // Go's `flag` ends at `--` and at the first argument that is no flag.
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { break };
        if flag.is_empty() {
            break;
        }
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let mut value = || value.or_else(|| arguments.next());
        match name {
            "proto" => protocol = protocol_of(value()?),
            "host-ip" => host = Some(value()?),
            "host-port" => host_port = port_of(value()?),
            "container-ip" => container = Some(value()?),
            "container-port" => container_port = port_of(value()?),
            // A flag of yes or no has its value behind `=` or none.
            "use-listen-fd" | "v" | "version" => {}
            // Where the value of a flag of a later release ends is not known.
            _ => return None,
        }
    }
    Some(Publication {
        protocol: protocol?,
        host: host?.parse().ok()?,
        host_port: host_port?,
        container: container?.parse().ok()?,
        container_port: container_port?,
    })
}

fn protocol_of(name: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.name().eq_ignore_ascii_case(name))
}

fn port_of(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

impl Publication {
    /// The container behind this socket, if the publication is of this socket and the container has IPv4.
    pub fn container_behind(&self, socket: &Served) -> Option<(Ipv4Addr, u16)> {
        // Go binds [::] for 0.0.0.0 where the caller does not ask for IPv4 alone, as docker-proxy did before 20.10.
        let is_same_address =
            self.host == socket.address || self.host.is_unspecified() && socket.address.is_unspecified();
        let is_same = (self.protocol, self.host_port) == (socket.protocol, socket.port) && is_same_address;
        match self.container {
            IpAddr::V4(container) if is_same => Some((container, self.container_port)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: [&str; 11] = [
        "/usr/bin/docker-proxy",
        "-proto",
        "tcp",
        "-host-ip",
        "0.0.0.0",
        "-host-port",
        "8080",
        "-container-ip",
        "172.17.0.2",
        "-container-port",
        "80",
    ];

    fn parsed(arguments: &[&str]) -> Option<Publication> {
        let text: String = arguments.iter().flat_map(|argument| [argument, "\0"]).collect();
        parse(text.as_bytes())
    }

    fn publication() -> Publication {
        Publication {
            protocol: Protocol::Tcp,
            host: Ipv4Addr::UNSPECIFIED.into(),
            host_port: 8080,
            container: Ipv4Addr::new(172, 17, 0, 2).into(),
            container_port: 80,
        }
    }

    fn socket(address: &str) -> Served {
        Served { protocol: Protocol::Tcp, address: address.parse().unwrap(), port: 8080, inode: 1, cookie: 1 }
    }

    #[test]
    fn arguments_of_every_release_are_understood() {
        assert_eq!(parsed(&COMMON), Some(publication()));
        assert_eq!(parsed(&[COMMON.as_slice(), &["-use-listen-fd"]].concat()), Some(publication()));
        let doubled =
            COMMON.map(|argument| argument.strip_prefix('-').map_or(argument.into(), |a| format!("--{a}")));
        assert_eq!(parsed(&doubled.each_ref().map(String::as_str)), Some(publication()));
        let joined = [
            "docker-proxy",
            "-use-listen-fd=true",
            "--proto=tcp",
            "-host-ip=0.0.0.0",
            "-host-port=8080",
            "--container-ip=172.17.0.2",
            "-container-port=80",
        ];
        assert_eq!(parsed(&joined), Some(publication()));
        let udp = COMMON.map(|argument| if argument == "tcp" { "udp" } else { argument });
        assert_eq!(parsed(&udp), Some(Publication { protocol: Protocol::Udp, ..publication() }));
    }

    #[test]
    fn incomplete_or_strange_arguments_say_nothing() {
        for length in 0..COMMON.len() {
            assert_eq!(parsed(&COMMON[..length]), None, "{length}");
        }
        for (from, to) in [
            ("tcp", "sctp"),
            ("8080", "0"),
            ("8080", "65536"),
            ("8080", "-1"),
            ("172.17.0.2", "web"),
            ("-proto", "-prototype"),
            ("-proto", "--"),
            ("-proto", "proto"),
            ("-proto", "---proto"),
        ] {
            let changed = COMMON.map(|argument| if argument == from { to } else { argument });
            assert_eq!(parsed(&changed), None, "{from} -> {to}");
        }
        assert_eq!(parse(&[0xff, 0, 0xfe]), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_publication_counts_for_its_own_socket_alone() {
        let container = Some((Ipv4Addr::new(172, 17, 0, 2), 80));
        assert_eq!(publication().container_behind(&socket("0.0.0.0")), container);
        assert_eq!(publication().container_behind(&socket("::")), container);
        assert_eq!(publication().container_behind(&socket("127.0.0.1")), None);
        assert_eq!(publication().container_behind(&Served { port: 8081, ..socket("0.0.0.0") }), None);
        let udp = Served { protocol: Protocol::Udp, ..socket("0.0.0.0") };
        assert_eq!(publication().container_behind(&udp), None);
        let ipv6 = Publication { container: "fd00::2".parse().unwrap(), ..publication() };
        assert_eq!(ipv6.container_behind(&socket("0.0.0.0")), None);
        // Without IPv6 in the container's network, the proxy on [::] forwards to its IPv4 address.
        let mapped = Publication { host: "::".parse().unwrap(), ..publication() };
        assert_eq!(mapped.container_behind(&socket("::")), container);
    }
}
