//! Programs on the cgroup: they write down who serves a socket.

use std::collections::HashSet;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, loaded_links};

use super::attachments::{CgroupAttachment, CgroupProgram};
use super::pins;
use super::tcx::RELEASE_LIMIT;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::wait;

/// Loads the program.
pub fn load(ebpf: &mut Ebpf, on: CgroupAttachment) -> Result<(), ProgramError> {
    let Some(program) = ebpf.program_mut(on.program) else { return Err(ProgramError::NotLoaded) };
    match on.kind {
        CgroupProgram::Sock => <&mut CgroupSock>::try_from(program)?.load(),
        CgroupProgram::SockAddr => <&mut CgroupSockAddr>::try_from(program)?.load(),
    }
}

/// Attaches the loaded program to the cgroup, beside all others there.
pub fn attach(ebpf: &mut Ebpf, on: CgroupAttachment, cgroup: BorrowedFd<'_>) -> Result<FdLink> {
    // Links share a hook whatever this says; the kernel refuses them the flags of the older way to attach.
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    let refused =
        || format!("the kernel refused to attach {} to the cgroup (CONFIG_CGROUP_BPF is needed)", on.program);
    let program = ebpf.program_mut(on.program).context("the eBPF object lacks a hook of ours")?;
    match on.kind {
        CgroupProgram::Sock => {
            let program: &mut CgroupSock = program.try_into()?;
            let id = program.attach(cgroup, MODE).or_exit(Exit::Kernel, refused)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        CgroupProgram::SockAddr => {
            let program: &mut CgroupSockAddr = program.try_into()?;
            let id = program.attach(cgroup, MODE).or_exit(Exit::Kernel, refused)?;
            Ok(program.take_link(id)?.try_into()?)
        }
    }
}

/// Whether the pinned link hangs on no cgroup any more. `bpf_link_info` would say so too, but aya keeps that part of it
/// to itself; this is `bpf_cgroup_link_show_fdinfo`.
pub fn is_detached(on: CgroupAttachment) -> Result<bool> {
    let path = pins::path(on.link_pin);
    let link = pins::open(&path)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned link {}", path.display()))?;
    let fdinfo = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", link.as_raw_fd()))
        .or_exit(Exit::Kernel, || format!("cannot ask about the pinned link {}", path.display()))?;
    Ok(has_no_cgroup(&fdinfo))
}

fn has_no_cgroup(fdinfo: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_a_cgroup_is_told_from_one_that_hangs_on_one() {
        let fdinfo = |id| format!("pos:\t0\nlink_type:\tcgroup\ncgroup_id:\t{id}\nattach_type:\t2\n");
        assert!(has_no_cgroup(&fdinfo(0)));
        assert!(!has_no_cgroup(&fdinfo(10)) && !has_no_cgroup(&fdinfo(1)));
        assert!(!has_no_cgroup("pos:\t0\n"), "nothing is said of it");
    }
}
