//! Who serves a socket: the hooks that write it down, and the tags of sockets that were there before the hooks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, loaded_links};
use rustix::fd::BorrowedFd;
use wsl_mirror_ebpf::abi::{Owner, OwnerPolicy};

use super::maps::SocketOwners;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::host::sockets;
use crate::output;

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

/// Waits until links whose pins were removed are gone: as with tcx, they go on for some 20 ms.
pub fn wait_until_gone(links: &HashSet<u32>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let start = Instant::now();
    while !links.is_empty() && loaded_links().flatten().any(|link| links.contains(&link.id())) {
        if start.elapsed() > PATIENCE {
            return Err(Failure::new(
                Exit::Kernel,
                "a hook is still on the cgroup: somebody else holds its link open (`bpftool link` shows it, \
                 `bpftool link detach` ends it)",
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Tags the sockets that serve and carry no tag yet. The hooks are there by now: whatever is bound meanwhile they
/// tag themselves, and what they wrote is left. `known` are those that were looked at before, by their inodes: who holds a
/// socket takes a look at every process, which is spared where there is no new one.
///
/// Says why some could not be tagged: those count as nobody's, which is no reason not to steer the others.
pub fn tag_sockets(map: &mut SocketOwners, owners: &BTreeMap<Owner, OwnerPolicy>, known: &mut HashSet<u32>) {
    let (served, mut failures) = sockets::served();
    let now: HashSet<u32> = served.into_iter().map(|socket| socket.inode).collect();
    let holders = sockets::holders(&now.difference(known).copied().collect()).unwrap_or_else(|error| {
        failures.push(error);
        HashMap::new()
    });
    let mut tag = |inode: u32, holders: &[sockets::Holder]| -> Result<()> {
        if let Some(server) = sockets::server(holders, owners)
            && let Some(socket) = sockets::borrow(server, inode)?
        {
            map.tag_if_new(&socket, server.owner)?;
        }
        Ok(())
    };
    failures.extend(holders.iter().filter_map(|(inode, holders)| tag(*inode, holders).err()));
    *known = now;
    say_of_whom_nothing_is_known(&failures);
}

fn say_of_whom_nothing_is_known(failures: &[anyhow::Error]) {
    let Some(first) = failures.first() else { return };
    let others = match failures.len() - 1 {
        0 => String::new(),
        others => format!(" (and {others} more like that)"),
    };
    output::note(&format!(
        "of some sockets it is not known who serves them, until they are bound again: {first:#}{others}"
    ));
}
