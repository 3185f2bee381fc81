//! Targets: the container behind a listener. Pure; [`super::listeners`] writes them.

use std::net::{IpAddr, Ipv4Addr};

use wsl_mirror_core::abi::{EngineWay, Owner, Protocol, Service, Target};

use crate::host::docker_proxy::{self, Publication};
use crate::host::firewall::{Access, LinuxAccess, Publications, Translated};
use crate::host::interface;
use crate::host::routes::Way;
use crate::host::sockets::{Holder, Served};

/// Processes that hold published ports and never accept. All of them are root's: any user may give a program such a name.
const HOLDERS: [Owner; 4] = [
    // Docker without its userland proxy, and Swarm's ingress.
    Owner::new(b"dockerd", 0),
    // Podman: the command binds, and conmon keeps the socket.
    Owner::new(b"podman", 0),
    Owner::new(b"conmon", 0),
    // nerdctl 2.1.6 and later.
    Owner::new(b"nerdctl", 0),
];
/// Processes that stand in for an engine, nerdctl's from 2.3 on (`sleep infinity`). Services start such processes too, which
/// inherit their sockets.
const STAND_INS: [Owner; 1] = [Owner::new(b"sleep", 0)];
/// Every process of an engine that may hold a published port.
pub const ENGINES: [Owner; 6] =
    [docker_proxy::OWNER, HOLDERS[0], HOLDERS[1], HOLDERS[2], HOLDERS[3], STAND_INS[0]];

/// What a process that holds a listener means to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// docker-proxy, with what its arguments say, as far as they say something.
    Proxy(Option<Publication>),
    /// A process of an engine that never accepts.
    Holder,
    /// A service of this machine.
    Other,
}

/// The engine's process among those that hold a listener: docker-proxy before dockerd, which binds for it; the youngest of
/// several.
///
/// An engine's socket may be seen in a program that it is just starting. A stand-in only counts alone.
pub fn engine(holders: &[Holder]) -> Option<&Holder> {
    let youngest = |owners: &[Owner]| {
        let found = holders.iter().filter(|holder| owners.contains(&holder.owner));
        found.max_by_key(|holder| holder.started)
    };
    let are_alone = || holders.iter().all(|holder| STAND_INS.contains(&holder.owner));
    youngest(&[docker_proxy::OWNER])
        .or_else(|| youngest(&HOLDERS))
        .or_else(|| youngest(&STAND_INS).filter(|_| are_alone()))
}

/// Whether more than an engine's processes have to be known to tell whether a listener is an engine's.
pub fn is_stand_in(holder: &Holder) -> bool {
    STAND_INS.contains(&holder.owner)
}

impl Role {
    /// The role of an engine's process. docker-proxy's arguments are only read if it is one.
    pub fn of(owner: &Owner, arguments: impl FnOnce() -> Option<Publication>) -> Self {
        if *owner == docker_proxy::OWNER { Self::Proxy(arguments()) } else { Self::Holder }
    }

    /// The container behind the socket that a process of this role holds.
    pub fn container(&self, socket: &Served, publications: &Publications) -> Option<(Ipv4Addr, u16)> {
        match self {
            Self::Proxy(publication) => publication.as_ref()?.container_behind(socket),
            Self::Holder => publications.target_of(socket.protocol, ipv4(socket.address)?, socket.port),
            Self::Other => None,
        }
    }

    const fn service(&self) -> Service {
        match self {
            Self::Proxy(_) => Service::Proxy,
            Self::Holder | Self::Other => Service::Holder,
        }
    }
}

/// The IPv4 address by which clients find a socket that is bound to this one.
const fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) if address.is_unspecified() => Some(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    }
}

/// What the engine's own rules do to Windows' packets for a port.
pub fn engine_way(publications: &Publications, protocol: Protocol, port: u16) -> EngineWay {
    if publications.is_dropped(protocol, port) { EngineWay::Dropped } else { EngineWay::Open }
}

/// What rules let Linux' own clients do with the port of a listener, and with the container behind it.
///
/// Where the way's interface has just gone, nothing is known of rules on it: the next look tells.
pub fn access(rules: &LinuxAccess, socket: &Served, container: (Ipv4Addr, u16), way: Way) -> Access {
    let Some(bridge) = interface::name(way.ifindex) else { return Access::Closed };
    let translated = Translated { container, source: way.source, bridge: &bridge };
    rules.to(socket.protocol, socket.port, &translated)
}

/// The target of a listener, new.
pub fn target(
    role: &Role,
    (address, port): (Ipv4Addr, u16),
    way: Way,
    engine_way: EngineWay,
    access: Access,
) -> Target {
    let closed = match access {
        Access::Open => 0,
        Access::Closed => Target::CLOSED_TO_LINUX,
    };
    Target {
        unanswered_at: 0,
        address: address.octets(),
        source: way.source.octets(),
        ifindex: way.ifindex,
        port,
        service: role.service() as u8,
        flags: engine_way as u8 | closed,
    }
}

/// What a listener's target has to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is as it should be.
    None,
    /// Another takes its place.
    Write(Target),
    /// There is none any more.
    Remove,
}

/// From the target that is there to the one that should be. The note that a container does not answer stays as long as
/// flows would take the same way to it.
pub fn change(there: Option<Target>, new: Option<Target>) -> Change {
    let Some(new) = new else { return there.map_or(Change::None, |_| Change::Remove) };
    let Some(there) = there else { return Change::Write(new) };
    let way = |target: &Target| (target.address, target.port, target.source);
    let noted = if way(&there) == way(&new) { there.unanswered_at } else { 0 };
    let new = Target { unanswered_at: noted, ..new };
    if new == there { Change::None } else { Change::Write(new) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::firewall::{Firewall, parse_iptables};

    const RULES: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.9:80
COMMIT
";

    fn publications() -> Publications {
        Publications::of(&parse_iptables(RULES, "iptables-nft").unwrap(), "loopback0")
    }

    fn served(address: &str) -> Served {
        Served { protocol: Protocol::Tcp, address: address.parse().unwrap(), port: 8080, inode: 1, cookie: 1 }
    }

    fn holder(name: &str, uid: u32, started: u64) -> Holder {
        Holder { pid: 1, fd: 3, started, owner: Owner::new(name.as_bytes(), uid) }
    }

    fn proxy(port: u16) -> Publication {
        Publication {
            protocol: Protocol::Tcp,
            host: Ipv4Addr::UNSPECIFIED.into(),
            host_port: port,
            container: Ipv4Addr::new(172, 17, 0, 2).into(),
            container_port: 80,
        }
    }

    fn some() -> Target {
        let way = Way { source: Ipv4Addr::new(172, 17, 0, 1), ifindex: 3 };
        let container = (Ipv4Addr::new(172, 17, 0, 2), 80);
        target(&Role::Proxy(None), container, way, EngineWay::Open, Access::Open)
    }

    #[test]
    fn a_holders_container_is_the_one_that_rules_name() {
        for address in ["0.0.0.0", "127.0.0.1", "::", "::ffff:127.0.0.1"] {
            let container = Role::Holder.container(&served(address), &publications());
            assert_eq!(container, Some((Ipv4Addr::new(172, 17, 0, 9), 80)), "{address}");
        }
        assert_eq!(Role::Holder.container(&served("::1"), &publications()), None);
        let other = Served { port: 8081, ..served("0.0.0.0") };
        assert_eq!(Role::Holder.container(&other, &publications()), None, "not published");
    }

    #[test]
    fn an_engines_process_is_found_among_the_holders() {
        let name = |holders: &[(&str, u32)]| {
            let holders: Vec<Holder> = (1..).zip(holders).map(|(age, of)| holder(of.0, of.1, age)).collect();
            engine(&holders).map(|holder| holder.owner.name().to_owned())
        };
        assert_eq!(name(&[("docker-proxy", 0), ("dockerd", 0)]).as_deref(), Some("docker-proxy"));
        for one in ["dockerd", "conmon", "podman", "nerdctl", "sleep"] {
            assert_eq!(name(&[(one, 0)]).as_deref(), Some(one));
        }
        assert_eq!(name(&[("podman", 0), ("conmon", 0), ("crun", 0)]).as_deref(), Some("conmon"));
        assert_eq!(name(&[("dockerd", 1000), ("docker-proxy", 1000), ("rootlessport", 0)]), None);
        assert_eq!(name(&[("service", 0), ("sleep", 0)]), None, "inherited");
        assert_eq!(name(&[]), None);
    }

    #[test]
    fn a_host_service_never_has_a_target() {
        assert_eq!(Role::Other.container(&served("0.0.0.0"), &publications()), None);
    }

    #[test]
    fn a_proxys_container_is_the_one_in_its_arguments() {
        let role = |publication| Role::of(&docker_proxy::OWNER, || publication);
        let container = |publication| role(publication).container(&served("0.0.0.0"), &publications());
        assert_eq!(container(Some(proxy(8080))), Some((Ipv4Addr::new(172, 17, 0, 2), 80)));
        assert_eq!(container(Some(proxy(8081))), None, "another port's");
        assert_eq!(container(None), None, "rules name another container");
    }

    #[test]
    fn a_target_carries_what_rules_do_to_each_side() {
        let way = Way { source: Ipv4Addr::new(172, 17, 0, 1), ifindex: 3 };
        for (engine_way, access) in [
            (EngineWay::Open, Access::Open),
            (EngineWay::Open, Access::Closed),
            (EngineWay::Dropped, Access::Open),
            (EngineWay::Dropped, Access::Closed),
        ] {
            let target = target(&Role::Holder, (Ipv4Addr::new(172, 17, 0, 2), 80), way, engine_way, access);
            assert_eq!(target.engine_way(), engine_way);
            assert_eq!(target.is_open_to_linux(), access == Access::Open);
        }
    }

    #[test]
    fn an_interface_that_is_gone_closes_the_port() {
        let rules = Firewall::default().linux_access();
        let to = |ifindex| {
            let way = Way { source: Ipv4Addr::LOCALHOST, ifindex };
            access(&rules, &served("0.0.0.0"), (Ipv4Addr::new(172, 17, 0, 2), 80), way)
        };
        // `lo` has the first index in every network namespace.
        assert_eq!([to(1), to(u32::MAX >> 1)], [Access::Open, Access::Closed]);
    }

    #[test]
    fn a_target_is_written_only_where_it_differs() {
        assert_eq!(change(None, None), Change::None);
        assert_eq!(change(None, Some(some())), Change::Write(some()));
        assert_eq!(change(Some(some()), Some(some())), Change::None);
        assert_eq!(change(Some(some()), None), Change::Remove);
    }

    #[test]
    fn an_unanswered_target_stays_so_on_the_same_way() {
        let noted = Target { unanswered_at: 7, ..some() };
        assert_eq!(change(Some(noted), Some(some())), Change::None);
        let dropped = Target { flags: EngineWay::Dropped as u8, ..some() };
        let kept = Target { unanswered_at: 7, ..dropped };
        assert_eq!(change(Some(noted), Some(dropped)), Change::Write(kept));
        for other in [
            Target { address: [172, 17, 0, 3], ..some() },
            Target { port: 81, ..some() },
            Target { source: [172, 18, 0, 1], ..some() },
        ] {
            assert_eq!(change(Some(noted), Some(other)), Change::Write(other));
        }
    }
}
