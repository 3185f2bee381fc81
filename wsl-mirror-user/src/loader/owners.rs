//! Who serves a socket: the hooks that write it down, and the tags of sockets that were there before the hooks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, loaded_links};
use rustix::fd::BorrowedFd;
use wsl_mirror_core::abi::{Owner, OwnerPolicy};

use super::hook::RELEASE_LIMIT;
use super::maps::SocketOwners;
use super::pins;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::host::sockets::{self, Holder};
use crate::wait;

/// A hook on a cgroup: it runs in whatever process does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketHook {
    /// `cgroup/post_bind4`.
    Bind4,
    /// `cgroup/post_bind6`.
    Bind6,
    /// `cgroup/getsockname4`.
    Name4,
    /// `cgroup/getsockname6`.
    Name6,
}

impl SocketHook {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bind4, Self::Bind6, Self::Name4, Self::Name6];

    /// The program's name in the object and in the kernel.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Bind4 => "wsl_mirror_bd4",
            Self::Bind6 => "wsl_mirror_bd6",
            Self::Name4 => "wsl_mirror_gs4",
            Self::Name6 => "wsl_mirror_gs6",
        }
    }

    /// What it is pinned as.
    pub const fn pin(self) -> &'static str {
        match self {
            Self::Bind4 => "link_post_bind4",
            Self::Bind6 => "link_post_bind6",
            Self::Name4 => "link_getsockname4",
            Self::Name6 => "link_getsockname6",
        }
    }

    /// Whether this is the pin of one.
    pub fn is_pin(name: &str) -> bool {
        Self::ALL.iter().any(|hook| hook.pin() == name)
    }

    /// Whether the pinned link hangs on no cgroup any more. `bpf_link_info` would say so too, but aya keeps that part of it
    /// to itself; this is `bpf_cgroup_link_show_fdinfo`.
    pub fn is_detached(self) -> Result<bool> {
        let path = pins::path(self.pin());
        let link = pins::open(&path)
            .or_exit(Exit::Kernel, || format!("cannot open the pinned link {}", path.display()))?;
        let said = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", link.as_raw_fd()))
            .or_exit(Exit::Kernel, || format!("cannot ask about the pinned link {}", path.display()))?;
        Ok(hangs_nowhere(&said))
    }

    /// Loads the program.
    pub fn load(self, ebpf: &mut Ebpf) -> Result<(), ProgramError> {
        let Some(program) = ebpf.program_mut(self.program()) else { return Err(ProgramError::NotLoaded) };
        match self {
            Self::Bind4 | Self::Bind6 => <&mut CgroupSock>::try_from(program)?.load(),
            Self::Name4 | Self::Name6 => <&mut CgroupSockAddr>::try_from(program)?.load(),
        }
    }

    /// Attaches the loaded program to the cgroup, beside whoever else is there.
    pub fn attach(self, ebpf: &mut Ebpf, cgroup: BorrowedFd<'_>) -> Result<FdLink> {
        // Links share a hook whatever this says; the kernel refuses them the flags of the older way to attach.
        const MODE: CgroupAttachMode = CgroupAttachMode::Single;
        let program = ebpf.program_mut(self.program()).context("the eBPF object lacks a hook of ours")?;
        match self {
            Self::Bind4 | Self::Bind6 => {
                let program: &mut CgroupSock = program.try_into()?;
                let id = program.attach(cgroup, MODE).or_exit(Exit::Kernel, || self.refused())?;
                Ok(program.take_link(id)?.try_into()?)
            }
            Self::Name4 | Self::Name6 => {
                let program: &mut CgroupSockAddr = program.try_into()?;
                let id = program.attach(cgroup, MODE).or_exit(Exit::Kernel, || self.refused())?;
                Ok(program.take_link(id)?.try_into()?)
            }
        }
    }

    fn refused(self) -> String {
        format!("the kernel refused to attach {} to the cgroup (CONFIG_CGROUP_BPF is needed)", self.program())
    }
}

/// Whether this is what the kernel says of a cgroup's link without a cgroup.
fn hangs_nowhere(fdinfo: &str) -> bool {
    fdinfo.lines().any(|line| line.strip_prefix("cgroup_id:").is_some_and(|id| id.trim() == "0"))
}

/// Waits until links whose pins were removed are gone: as with tcx, they go on for some 20 ms.
pub fn wait_until_gone(links: &HashSet<u32>) -> Result<()> {
    let gone = wait::poll(RELEASE_LIMIT, || {
        let is_there = !links.is_empty() && loaded_links().flatten().any(|link| links.contains(&link.id()));
        Ok((!is_there).then_some(()))
    })?;
    gone.ok_or_else(|| {
        Failure::new(
            Exit::Kernel,
            "a hook is still on the cgroup: somebody else holds its link open (`bpftool link` shows it, \
             `bpftool link detach` ends it)",
        )
    })
}

/// Tags the sockets that serve and carry no tag yet. The hooks are there by now: whatever is bound meanwhile they
/// tag themselves, and what they wrote is left. `known` are those that were dealt with before, by their inodes: who holds a
/// socket takes a look at every process, which is spared where there is no new one.
///
/// Gives why some could not be tagged, in words: those count as nobody's, which is no reason not to steer the others.
pub fn tag_sockets(
    map: &mut SocketOwners,
    owners: &BTreeMap<Owner, OwnerPolicy>,
    known: &mut HashSet<u32>,
) -> Option<String> {
    let (served, mut failures) = sockets::served();
    let now: HashSet<u32> = served.into_iter().map(|socket| socket.inode).collect();
    known.retain(|inode| now.contains(inode));
    let holders = sockets::holders(&now.difference(known).copied().collect());
    failures.extend(tag_new(holders, known, |inode, holders| {
        let Some(server) = sockets::server(holders, owners) else { return Ok(false) };
        let Some(socket) = sockets::borrow(server, inode)? else { return Ok(false) };
        map.tag_if_new(&socket, server.owner)?;
        Ok(true)
    }));
    of_whom_nothing_is_known(&failures)
}

/// Tags those whose holders were found, and gives what failed. Only what carries a tag afterwards is known: the others
/// are looked at again the next time, when their holder may be seen or may let us.
fn tag_new(
    holders: Result<HashMap<u32, Vec<Holder>>>,
    known: &mut HashSet<u32>,
    mut tag: impl FnMut(u32, &[Holder]) -> Result<bool>,
) -> Vec<anyhow::Error> {
    let holders = match holders {
        Ok(holders) => holders,
        Err(error) => return vec![error],
    };
    let mut failures = Vec::new();
    // In order, so that the same failures are said in the same words.
    for (inode, holders) in BTreeMap::from_iter(holders) {
        match tag(inode, &holders) {
            Ok(true) => drop(known.insert(inode)),
            Ok(false) => {}
            Err(error) => failures.push(error),
        }
    }
    failures
}

fn of_whom_nothing_is_known(failures: &[anyhow::Error]) -> Option<String> {
    let first = failures.first()?;
    let others = match failures.len() - 1 {
        0 => String::new(),
        others => format!(" (and {others} more like that)"),
    };
    Some(format!(
        "of some sockets it is not known who serves them, until they are bound again: {first:#}{others}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_could_not_be_tagged_is_looked_at_again() {
        let holder = Holder { pid: 1, fd: 3, started: 1, owner: Owner::new(b"proxy", 0) };
        let all = || Ok([1, 2, 3].map(|inode| (inode, vec![holder.clone()])).into());
        let mut known = HashSet::from([9]);
        let failures = tag_new(all(), &mut known, |inode, _| match inode {
            1 => Ok(true),
            2 => Ok(false),
            _ => anyhow::bail!("not allowed"),
        });
        assert_eq!(failures.len(), 1);
        assert_eq!(known, HashSet::from([1, 9]), "its holder let go of 2, and 3 could not be borrowed");
        let failures = tag_new(Err(anyhow::anyhow!("no /proc")), &mut known, |_, _| Ok(true));
        assert_eq!((failures.len(), known.len()), (1, 2), "nobody could be found");
    }

    #[test]
    fn a_link_without_a_cgroup_is_told_from_one_that_hangs_on_one() {
        let fdinfo = |id| format!("pos:\t0\nlink_type:\tcgroup\ncgroup_id:\t{id}\nattach_type:\t2\n");
        assert!(hangs_nowhere(&fdinfo(0)));
        assert!(!hangs_nowhere(&fdinfo(10)) && !hangs_nowhere(&fdinfo(1)));
        assert!(!hangs_nowhere("pos:\t0\n"), "nothing is said of it");
    }
}
