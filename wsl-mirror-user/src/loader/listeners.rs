//! The listeners of this machine: who serves them, which containers are behind them, and both written onto the sockets.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::Result;
use wsl_mirror_core::abi::{Owner, OwnerPolicy, Protocol, Target};

use super::look::Look;
use super::maps::{SocketOwners, SocketTargets};
use super::noted::Noted;
use super::targets::{self, Change, Role};
use super::udp_hooks::{UdpHooks, UdpTargets};
use crate::errors::Errors;
use crate::host::docker_proxy;
use crate::host::firewall::{LinuxAccess, Publications};
use crate::host::routes::Ways;
use crate::host::sockets::{self, Among, Holder, Served};

/// The maps that are written.
pub struct Maps {
    /// Who serves a socket.
    pub owners: SocketOwners,
    /// The container behind a socket.
    pub targets: SocketTargets,
}

/// What tags and targets depend on, beside sockets and processes.
pub struct Surroundings<'a> {
    /// The policies of owners.
    pub owners: &'a BTreeMap<Owner, OwnerPolicy>,
    /// What engines publish by rules.
    pub publications: &'a Publications,
    /// What rules let Linux' own clients reach.
    pub linux_access: &'a LinuxAccess,
    /// The interface whose packets are steered.
    pub interface: &'a str,
}

/// What is known of listeners between two looks.
#[derive(Debug, Default)]
pub struct Listeners {
    /// By cookie.
    known: BTreeMap<u64, Known>,
    noted: Noted,
}

/// A listener whose server was found. It carries a tag.
#[derive(Clone, Debug)]
struct Known {
    socket: Served,
    server: Holder,
    role: Role,
    target: Option<Target>,
}

impl Known {
    fn is_target_of_udp(&self) -> bool {
        self.socket.protocol == Protocol::Udp && self.target.is_some()
    }
}

impl Listeners {
    /// Notes sockets that were bound or handed on, by their cookies.
    pub fn note(&mut self, cookies: &[u64], now: Instant) {
        self.noted.note(cookies, now);
    }

    /// Notes that more sockets were bound or handed on than could be told.
    pub const fn note_lost(&mut self) {
        self.noted.are_lost = true;
    }

    /// Tags listeners that carry no tag yet, and gives each the target that it should have. The programs on the cgroup are
    /// attached by now: they tag sockets that are bound meanwhile, and those tags stay.
    ///
    /// UDP's hooks are attached before a listener of UDP gets a target. A look at everything detaches them where none has one.
    ///
    /// Gives notes on listeners that failed: they stay without owner or target, and the next look tries them again.
    pub fn look(
        &mut self,
        look: Look,
        maps: &mut Maps,
        udp_hooks: &mut UdpHooks<'_>,
        surroundings: &Surroundings<'_>,
    ) -> Vec<String> {
        let now = Instant::now();
        let (served, mut untagged) = sockets::served();
        let served: BTreeMap<u64, Served> =
            served.into_iter().map(|socket| (socket.cookie, socket)).collect();
        self.known.retain(|cookie, _| served.contains_key(cookie));
        let mut sought: HashMap<u32, Served> = served
            .values()
            .filter(|socket| {
                let is_known = self.known.contains_key(&socket.cookie);
                self.noted.contains(socket.cookie)
                    || !is_known && (look == Look::Everything || self.noted.are_lost)
            })
            .map(|socket| (socket.inode, *socket))
            .collect();
        let mut work = Work { maps, udp_hooks, surroundings, ways: None, look };
        let mut untargeted = Errors::default();
        self.known.retain(|_, known| {
            if sought.contains_key(&known.socket.inode) {
                return true;
            }
            let settled = untargeted.keep(work.settle(known, look)).unwrap_or(Settled::Done);
            if settled == Settled::Lost {
                sought.insert(known.socket.inode, known.socket);
            }
            settled == Settled::Done
        });
        let inodes: HashSet<u32> = sought.keys().copied().collect();
        let holders = match look {
            Look::Everything => sockets::holders(&inodes, Among::All),
            Look::Noted => engines(&inodes),
        };
        // In order, so that the same failures give the same note.
        for (inode, holders) in BTreeMap::from_iter(untagged.keep(holders).unwrap_or_default()) {
            let Some(socket) = sought.get(&inode) else { continue };
            match work.find_server(*socket, &holders, look) {
                Ok(Some((mut known, file))) => {
                    if untargeted.keep(work.write_target(&mut known, &file)).is_some() {
                        self.noted.forget(socket.cookie);
                    }
                    self.known.insert(socket.cookie, known);
                }
                Ok(None) => {}
                Err(error) => untagged.push(error),
            }
        }
        self.noted.age(now, &served);
        if look == Look::Everything {
            let is_found = self.known.values().any(Known::is_target_of_udp);
            let targets = match untagged.len() + untargeted.len() {
                _ if is_found => UdpTargets::Some,
                0 => UdpTargets::None,
                _ => UdpTargets::Unknown,
            };
            untargeted.keep(udp_hooks.settle(targets));
        }
        let untagged = untagged.first().map(|first| {
            format!("of some sockets it is not known who serves them, until they are bound again: {first}")
        });
        let untargeted =
            untargeted.first().map(|first| format!("of some sockets the container is not known: {first}"));
        untagged.into_iter().chain(untargeted).collect()
    }
}

/// Every socket that serves, with its target. Only sockets of engines may have one.
pub fn targets(map: &SocketTargets) -> Result<Vec<(Served, Option<Target>)>> {
    let (served, _) = sockets::served();
    let holders = sockets::holders(
        &served.iter().map(|socket| socket.inode).collect(),
        Among::Owners(&targets::ENGINES),
    )?;
    let of = |socket: &Served| -> Result<Option<Target>> {
        for holder in holders.get(&socket.inode).into_iter().flatten() {
            if let Some(file) = sockets::borrow(holder, socket.inode)? {
                return map.get(&file);
            }
        }
        Ok(None)
    };
    served.into_iter().map(|socket| Ok((socket, of(&socket)?))).collect()
}

/// The engines' processes that hold these sockets, and all others that hold a socket with an engine's stand-in.
fn engines(inodes: &HashSet<u32>) -> Result<HashMap<u32, Vec<Holder>>> {
    let mut found = sockets::holders(inodes, Among::Owners(&targets::ENGINES))?;
    let doubtful = |holders: &[Holder]| targets::engine(holders).is_some_and(targets::is_stand_in);
    let doubtful = found.iter().filter(|(_, holders)| doubtful(holders)).map(|(inode, _)| *inode).collect();
    found.extend(sockets::holders(&doubtful, Among::All)?);
    Ok(found)
}

/// What became of a listener that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    /// Its target is what it should be.
    Done,
    /// Its server has let go of it.
    Lost,
}

struct Work<'a, 'b> {
    maps: &'a mut Maps,
    udp_hooks: &'a mut UdpHooks<'b>,
    look: Look,
    surroundings: &'a Surroundings<'a>,
    /// Opened for the first target.
    ways: Option<Ways>,
}

impl Work<'_, '_> {
    /// Finds a listener's server, and tags the listener by it.
    fn find_server(
        &mut self,
        socket: Served,
        holders: &[Holder],
        look: Look,
    ) -> Result<Option<(Known, OwnedFd)>> {
        let engine = targets::engine(holders);
        let server = match look {
            Look::Everything => sockets::server(holders, self.surroundings.owners),
            Look::Noted => engine,
        };
        let Some(holder) = engine.or(server) else { return Ok(None) };
        let Some(file) = sockets::borrow(holder, socket.inode)? else { return Ok(None) };
        if look == Look::Everything
            && let Some(server) = server
        {
            self.maps.owners.tag_if_new(&file, server.owner)?;
        }
        let role =
            engine.map_or(Role::Other, |engine| Role::of(&engine.owner, || docker_proxy::read(engine)));
        Ok(Some((Known { socket, server: holder.clone(), role, target: None }, file)))
    }

    /// Gives a known listener another target if it should have one. A look at everything asks the map in any case.
    fn settle(&mut self, known: &mut Known, look: Look) -> Result<Settled> {
        let target = self.target(known)?;
        let may_have_one = known.role != Role::Other || known.target.is_some();
        if target == known.target && !(look == Look::Everything && may_have_one) {
            return Ok(Settled::Done);
        }
        let Some(file) = sockets::borrow(&known.server, known.socket.inode)? else {
            return Ok(Settled::Lost);
        };
        self.write(known, target, &file)?;
        Ok(Settled::Done)
    }

    fn write_target(&mut self, known: &mut Known, file: &OwnedFd) -> Result<()> {
        let target = self.target(known)?;
        self.write(known, target, file)
    }

    fn write(&mut self, known: &mut Known, target: Option<Target>, file: &OwnedFd) -> Result<()> {
        let there = self.maps.targets.get(file)?;
        match targets::change(there, target) {
            Change::None => {}
            Change::Write(target) => {
                if known.socket.protocol == Protocol::Udp {
                    self.udp_hooks.attach(self.look)?;
                }
                self.maps.targets.set(file, Some(target))?;
            }
            Change::Remove => self.maps.targets.set(file, None)?,
        }
        known.target = target;
        Ok(())
    }

    /// The target that a listener should have.
    fn target(&mut self, known: &Known) -> Result<Option<Target>> {
        let Surroundings { publications, linux_access, interface, .. } = *self.surroundings;
        let Known { socket, role, .. } = known;
        let Some(container) = role.container(socket, publications) else { return Ok(None) };
        let ways = match &mut self.ways {
            Some(ways) => ways,
            none => none.insert(Ways::begin(interface)?),
        };
        let engine_way = targets::engine_way(publications, socket.protocol, socket.port);
        let Some(way) = ways.to(container.0)? else { return Ok(None) };
        let access = targets::access(linux_access, socket, container, way);
        Ok(Some(targets::target(role, container, way, engine_way, access)))
    }
}
