//! Programs on the cgroup, and the links that hold them there.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::{io, mem, ptr};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, loaded_links};
use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::attachments::{CgroupAttachment, CgroupProgram, UdpAttachment};
use super::pins;
use super::tcx::RELEASE_LIMIT;
use crate::exit::{Exit, Failure, OrExit as _};
use crate::wait;

/// Links share a hook in every mode; the kernel refuses them the flags of the older way to attach.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// What attaching or detaching did, for the day when it has to be undone.
pub enum Change {
    /// A new link was pinned, in the place of an older one if there was one.
    Attached {
        /// Where.
        on: CgroupAttachment,
        /// The id of the new link.
        link: u32,
        /// The older link.
        old: Option<FdLink>,
    },
    /// Another program took the place of this one in the pinned link.
    Replaced {
        /// Where.
        on: CgroupAttachment,
        /// The program before.
        old: OwnedFd,
    },
    /// The pin of this link was removed.
    Detached {
        /// Where.
        on: CgroupAttachment,
        /// The link.
        old: FdLink,
    },
}

impl Change {
    /// Undoes it, and waits until that is in force.
    pub fn undo(self) -> Result<()> {
        match self {
            Self::Attached { on, link, old } => {
                pins::unpin_link(on.link_pin, old)?;
                wait_until_gone(&HashSet::from([link]))
            }
            Self::Replaced { on, old } => {
                let link = open(on)?;
                replace(&link, old.as_fd(), on)
            }
            Self::Detached { on, old } => pins::pin_link(old, on.link_pin).map(drop),
        }
    }

    /// Where it was done.
    pub const fn on(&self) -> CgroupAttachment {
        match self {
            Self::Attached { on, .. } | Self::Replaced { on, .. } | Self::Detached { on, .. } => *on,
        }
    }
}

/// Loads the program.
pub fn load(ebpf: &mut Ebpf, on: CgroupAttachment) -> Result<(), ProgramError> {
    let Some(program) = ebpf.program_mut(on.program) else { return Err(ProgramError::NotLoaded) };
    match on.kind {
        CgroupProgram::Sock => <&mut CgroupSock>::try_from(program)?.load(),
        CgroupProgram::SockAddr => <&mut CgroupSockAddr>::try_from(program)?.load(),
    }
}

/// Attaches the loaded program to the cgroup, beside all others there, and pins its link.
///
/// A pinned link on this cgroup goes on with the new program, in one stroke: two programs of ours never run for one
/// connect. The second would take the container for what the client named.
pub fn attach(ebpf: &mut Ebpf, on: CgroupAttachment, cgroup: BorrowedFd<'_>) -> Result<Change> {
    let program = ebpf.program_mut(on.program).context("the eBPF object lacks a hook of ours")?;
    if let Some(link) = link_on(on, cgroup)? {
        let old = program_in(on)?;
        replace(&link, program.fd()?.as_fd(), on)?;
        return Ok(Change::Replaced { on, old });
    }
    let link: FdLink = match on.kind {
        CgroupProgram::Sock => {
            let program: &mut CgroupSock = program.try_into()?;
            let id = program.attach(cgroup, MODE).or_exit(Exit::Kernel, || refused(on))?;
            program.take_link(id)?.try_into()?
        }
        CgroupProgram::SockAddr => new_link(program.try_into()?, on, cgroup)?,
    };
    pin(link, on)
}

/// Attaches the pinned program, and pins its link.
pub fn attach_pinned(udp: UdpAttachment, cgroup: BorrowedFd<'_>) -> Result<Change> {
    let path = pins::path(udp.program_pin);
    let mut program = CgroupSockAddr::from_pin(&path, udp.hook.attach_type())
        .or_exit(Exit::Kernel, || format!("cannot open the pinned program {}", path.display()))?;
    pin(new_link(&mut program, udp.on, cgroup)?, udp.on)
}

/// Removes the pin of a link. The program runs until the change is dropped.
pub fn detach(on: CgroupAttachment) -> Result<Change> {
    let old = pins::open_link(on.link_pin)?;
    pins::remove(on.link_pin)?;
    Ok(Change::Detached { on, old })
}

fn new_link(program: &mut CgroupSockAddr, on: CgroupAttachment, cgroup: BorrowedFd<'_>) -> Result<FdLink> {
    let id = program.attach(cgroup, MODE).or_exit(Exit::Kernel, || refused(on))?;
    Ok(program.take_link(id)?.try_into()?)
}

fn refused(on: CgroupAttachment) -> String {
    format!("the kernel refused to attach {} to the cgroup (CONFIG_CGROUP_BPF is needed)", on.program)
}

fn pin(link: FdLink, on: CgroupAttachment) -> Result<Change> {
    let id = link.info().or_exit(Exit::Kernel, || "cannot ask about a link".into())?.id();
    Ok(Change::Attached { on, link: id, old: pins::pin_link(link, on.link_pin)? })
}

/// The pinned link, if it hangs on this cgroup.
fn link_on(on: CgroupAttachment, cgroup: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    if !pins::path(on.link_pin).exists() {
        return Ok(None);
    }
    let link = open(on)?;
    // The inode's number is the cgroup's id (`kernfs_id_ino`).
    let id = rustix::fs::fstat(cgroup).or_exit(Exit::Kernel, || "cannot look at the cgroup".into())?.st_ino;
    Ok((cgroup_id(&fdinfo(&link, on)?) == Some(id)).then_some(link))
}

/// The program in the pinned link. aya would ask for every program of the machine.
fn program_in(on: CgroupAttachment) -> Result<OwnedFd> {
    let id = pins::program_in_link(on.link_pin)?;
    // SAFETY: all zeros is a value of this union, and means nothing.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    attributes.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    let fd = call(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &attributes).or_exit(Exit::Kernel, || {
        format!("cannot open the program that {} runs now (id {id})", on.link_pin)
    })?;
    // SAFETY: it is a new descriptor, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program into a link (`BPF_LINK_UPDATE`). aya does this for links on interfaces only.
fn replace(link: &OwnedFd, program: BorrowedFd<'_>, on: CgroupAttachment) -> Result<()> {
    // SAFETY: all zeros is a value of this union, and means nothing.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    attributes.link_update.link_fd = link.as_raw_fd().cast_unsigned();
    attributes.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd().cast_unsigned();
    call(bpf_cmd::BPF_LINK_UPDATE, &attributes)
        .or_exit(Exit::Kernel, || format!("the kernel refused to put {} into its pinned link", on.program))?;
    Ok(())
}

/// bpf(2). For commands whose attributes hold no pointers.
fn call(command: bpf_cmd, attributes: &bpf_attr) -> io::Result<i32> {
    // SAFETY: the kernel reads the attributes, which are as long as we say.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<bpf_attr>()) };
    i32::try_from(done).ok().filter(|done| *done >= 0).ok_or_else(io::Error::last_os_error)
}

/// Whether the pinned link hangs on no cgroup any more. `bpf_link_info` would say so too, but aya keeps that part of it
/// to itself.
pub fn is_detached(on: CgroupAttachment) -> Result<bool> {
    Ok(cgroup_id(&fdinfo(&open(on)?, on)?) == Some(0))
}

fn open(on: CgroupAttachment) -> Result<OwnedFd> {
    let path = pins::path(on.link_pin);
    pins::open(&path).or_exit(Exit::Kernel, || format!("cannot open the pinned link {}", path.display()))
}

/// What `bpf_cgroup_link_show_fdinfo` writes.
fn fdinfo(link: &OwnedFd, on: CgroupAttachment) -> Result<String> {
    std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", link.as_raw_fd()))
        .or_exit(Exit::Kernel, || format!("cannot ask about the pinned link {}", on.link_pin))
}

/// The cgroup on which a link hangs; 0: on none any more.
fn cgroup_id(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("cgroup_id:")?.trim().parse().ok())
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
    fn a_link_names_its_cgroup() {
        let fdinfo = |id| format!("pos:\t0\nlink_type:\tcgroup\ncgroup_id:\t{id}\nattach_type:\t2\n");
        assert_eq!(cgroup_id(&fdinfo(0)), Some(0), "it hangs on none");
        assert_eq!(cgroup_id(&fdinfo(10)), Some(10));
        assert_eq!(cgroup_id("pos:\t0\n"), None, "nothing is said of it");
    }
}
