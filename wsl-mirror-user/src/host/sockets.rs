//! Sockets that serve, and the processes that hold them: for those that were bound before we were there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use netlink_packet_core::{Emitable as _, NLM_F_DUMP, NLM_F_REQUEST, Parseable as _};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SOCK_DIAG_BY_FAMILY};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use procfs::process::{FDTarget, Process, all_processes};
use rustix::fs::fstat;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use wsl_mirror_core::abi::{Owner, OwnerPolicy, Protocol};

use super::netlink::Conversation;
use crate::errors::Errors;
use crate::exit::{Exit, OrExit as _};

/// A socket that somebody may send to: TCP in LISTEN, or UDP with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Served {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address that it is bound to.
    pub address: IpAddr,
    /// Host order.
    pub port: u16,
    /// Number of its file.
    pub inode: u32,
    /// The kernel's own number of it, as programs see it too.
    pub cookie: u64,
}

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: i32,
    /// The number that it has the socket under.
    pub fd: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// Who it is.
    pub owner: Owner,
}

impl Holder {
    /// Whether the process still is the one that was found.
    pub fn is_alive(&self) -> bool {
        Process::new(self.pid).is_ok_and(|process| identify(&process) == Some((self.started, self.owner)))
    }
}

/// The sockets of this network namespace that serve; and why some of them could not be listed.
pub fn served() -> (Vec<Served>, Errors) {
    let (mut sockets, mut failures) = (Vec::new(), Errors::default());
    for family in [AF_INET, AF_INET6] {
        for (number, protocol, states) in [
            (IPPROTO_TCP, Protocol::Tcp, StateFlags::LISTEN),
            (IPPROTO_UDP, Protocol::Udp, StateFlags::all()),
        ] {
            let dumped = dump(family, number, states, |socket| {
                let (id, inode) = (&socket.header.socket_id, socket.header.inode);
                if id.source_port != 0 && inode != 0 {
                    sockets.push(Served {
                        protocol,
                        address: id.source_address,
                        port: id.source_port,
                        inode,
                        cookie: u64::from_le_bytes(id.cookie),
                    });
                }
            });
            // Each protocol's sock_diag is a part of the kernel of its own (CONFIG_INET_UDP_DIAG).
            let what = || format!("cannot list the {} sockets (sock_diag)", protocol.name());
            failures.keep(dumped.with_context(what));
        }
    }
    (sockets, failures)
}

/// A TCP socket with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    family: u8,
    id: SocketId,
}

impl Connection {
    /// Its own address and port.
    pub const fn local(&self) -> (IpAddr, u16) {
        (self.id.source_address, self.id.source_port)
    }

    /// Its peer's address and port.
    pub const fn remote(&self) -> (IpAddr, u16) {
        (self.id.destination_address, self.id.destination_port)
    }

    /// The request of `sock_diag` for exactly this socket: it has the socket's cookie.
    pub fn request(&self) -> Vec<u8> {
        request(self.family, IPPROTO_TCP, StateFlags::all(), self.id.clone())
    }
}

/// Every TCP socket of this network namespace that has a peer.
pub fn connections() -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for family in [AF_INET, AF_INET6] {
        dump(family, IPPROTO_TCP, StateFlags::all() - StateFlags::LISTEN, |socket| {
            connections.push(Connection { family, id: socket.header.socket_id.clone() });
        })
        .context("cannot list the TCP sockets (sock_diag)")?;
    }
    Ok(connections)
}

fn dump(family: u8, protocol: u8, states: StateFlags, mut take: impl FnMut(&InetResponse)) -> Result<()> {
    let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let body = request(family, protocol, states, id);
    Conversation::begin(NETLINK_SOCK_DIAG)?.ask(
        SOCK_DIAG_BY_FAMILY,
        NLM_F_REQUEST | NLM_F_DUMP,
        &body,
        |body| {
            take(&InetResponse::parse(body)?);
            Ok(())
        },
    )
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: StateFlags, socket_id: SocketId) -> Vec<u8> {
    let request = InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id };
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    bytes
}

/// Whose processes are searched for a socket.
#[derive(Clone, Copy, Debug)]
pub enum Among<'a> {
    /// Everybody's.
    All,
    /// Those of these owners: the names of all others are read, and not their files.
    Owners(&'a [Owner]),
}

impl Among<'_> {
    fn may_include(self, process: &Process) -> bool {
        let Self::Owners(owners) = self else { return true };
        let name = std::fs::read(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
        let name = Owner::new(name.trim_ascii_end(), 0).name;
        owners.iter().any(|owner| owner.name == name)
    }

    fn includes(self, owner: &Owner) -> bool {
        match self {
            Self::All => true,
            Self::Owners(owners) => owners.contains(owner),
        }
    }
}

/// Who holds these sockets, by inode. Of other PID namespaces (another distribution's), only what is below ours is
/// seen.
pub fn holders(inodes: &HashSet<u32>, among: Among<'_>) -> Result<HashMap<u32, Vec<Holder>>> {
    let mut holders: HashMap<u32, Vec<Holder>> = HashMap::new();
    if inodes.is_empty() {
        return Ok(holders);
    }
    let processes = all_processes().or_exit(Exit::Kernel, || "cannot list the processes (/proc)".into())?;
    for process in processes.flatten().filter(|process| among.may_include(process)) {
        // Processes end, and close files, while we look: whoever is gone holds nothing.
        let Ok(files) = process.fd() else { continue };
        let mut owner = None;
        for file in files.flatten() {
            let FDTarget::Socket(inode) = file.target else { continue };
            let Some(inode) = u32::try_from(inode).ok().filter(|inode| inodes.contains(inode)) else {
                continue;
            };
            if owner.is_none() {
                owner = identify(&process).filter(|(_, owner)| among.includes(owner));
            }
            let Some((started, owner)) = owner else { break };
            holders.entry(inode).or_default().push(Holder { pid: process.pid, fd: file.fd, started, owner });
        }
    }
    Ok(holders)
}

fn identify(process: &Process) -> Option<(u64, Owner)> {
    let stat = process.stat().ok()?;
    let uid = process.status().ok()?.ruid;
    Some((stat.starttime, Owner::new(stat.comm.as_bytes(), uid)))
}

/// Who serves a socket that several processes hold: the hooks would have seen who touched it last, which is whoever it
/// was handed to. Somebody that `OWNERS` knows, else the youngest.
pub fn server<'a>(holders: &'a [Holder], owners: &BTreeMap<Owner, OwnerPolicy>) -> Option<&'a Holder> {
    let is_known = |holder: &Holder| {
        owners.contains_key(&holder.owner) || owners.contains_key(&holder.owner.of_any_user())
    };
    holders.iter().max_by_key(|holder| (is_known(holder), holder.started))
}

/// The same socket under a descriptor of ours; `None` if its holder has let go of it meanwhile.
pub fn borrow(holder: &Holder, inode: u32) -> Result<Option<OwnedFd>> {
    let open = || -> rustix::io::Result<OwnedFd> {
        let pid = Pid::from_raw(holder.pid).ok_or(rustix::io::Errno::SRCH)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        pidfd_getfd(process, holder.fd, PidfdGetfdFlags::empty())
    };
    match open() {
        // The number may stand for another file by now.
        Ok(socket) => {
            let found = fstat(&socket).context("cannot look at a socket")?.st_ino;
            Ok((found == u64::from(inode)).then_some(socket))
        }
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::BADF) => Ok(None),
        Err(error) => Err(error).or_exit(Exit::Kernel, || {
            format!("cannot open socket {} of process {} (pidfd_getfd)", holder.fd, holder.pid)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};
    use wsl_mirror_core::abi::{BUILT_IN_OWNERS, Policy};

    fn holder(name: &str, uid: u32, started: u64) -> Holder {
        Holder { pid: 1, fd: 3, started, owner: Owner::new(name.as_bytes(), uid) }
    }

    fn owners() -> BTreeMap<Owner, OwnerPolicy> {
        BUILT_IN_OWNERS.into_iter().map(|(owner, policy)| (owner, OwnerPolicy::new(policy))).collect()
    }

    #[test]
    fn a_socket_is_served_by_a_known_or_the_youngest_holder() {
        let serves = |holders: &[Holder]| {
            server(holders, &owners()).map(|holder| holder.owner.name().to_owned()).unwrap_or_default()
        };
        let (daemon, proxy) = (holder("dockerd", 0, 10), holder("docker-proxy", 0, 20));
        assert_eq!(serves(&[daemon.clone(), proxy.clone()]), "docker-proxy");
        assert_eq!(serves(&[holder("somebody", 0, 30), proxy]), "docker-proxy");
        assert_eq!(serves(&[holder("systemd", 0, 1), holder("service", 5, 9), daemon]), "dockerd");
        // A user's own program of that name is nobody special.
        assert_eq!(serves(&[holder("docker-proxy", 1000, 5), holder("other", 0, 6)]), "other");
        assert_eq!(serves(&[]), "");
    }

    #[test]
    fn an_owner_that_is_known_whatever_the_user_counts_as_known() {
        let mut owners = owners();
        owners.insert(Owner::new(b"proxy", Owner::ANY_UID), OwnerPolicy::new(Policy::Steer));
        let holders = [holder("proxy", 1000, 5), holder("other", 0, 6)];
        assert_eq!(server(&holders, &owners), Some(&holders[0]));
    }

    #[test]
    fn our_own_listeners_are_found_and_can_be_borrowed() {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let (all, failures) = served();
        assert_eq!(failures.len(), 0, "{failures:?}");
        for (protocol, address) in
            [(Protocol::Tcp, tcp.local_addr().unwrap()), (Protocol::Udp, udp.local_addr().unwrap())]
        {
            let is_it = |socket: &&Served| {
                (socket.protocol, socket.address, socket.port) == (protocol, address.ip(), address.port())
            };
            let socket = all.iter().find(is_it).unwrap_or_else(|| panic!("no {address} in {all:?}"));
            let holders = holders(&HashSet::from([socket.inode]), Among::All).unwrap();
            let holder = &holders[&socket.inode][0];
            assert_eq!(holder.pid.cast_unsigned(), std::process::id());
            assert!(borrow(holder, socket.inode).unwrap().is_some());
            assert!(borrow(holder, socket.inode + 1).unwrap().is_none(), "another file by now");
        }
    }
}
