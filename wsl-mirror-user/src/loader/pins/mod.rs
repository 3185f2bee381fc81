//! The pins: everything that touches bpffs.

pub mod bpffs;
mod content;
mod layout;
mod paths;

use std::ffi::CString;
use std::fs;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::{io, mem};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupSockAddr, ProgramInfo, SchedClassifier};
use aya_obj::generated::{bpf_attr, bpf_cmd};

pub use self::content::Pins;
pub use self::paths::{MAPS, directories, directory, path, path_of_new};
use super::attachments::UdpAttachment;
use crate::exit::{Exit, OrExit as _};

/// Opens a pinned object of any kind. aya opens links too, but keeps their descriptors to itself.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a value of this union, and means nothing.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the kernel reads the attributes, which are as long as we say, and the path, which outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_OBJ_GET, &raw const attributes, size_of::<bpf_attr>())
    };
    match i32::try_from(fd) {
        // SAFETY: it is a new descriptor, and nobody else's.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes one of our directories, which has to be empty.
pub fn remove_directory(path: &Path) -> Result<()> {
    fs::remove_dir(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Removes a pin.
pub fn remove(name: &str) -> Result<()> {
    remove_at(&path(name))
}

fn remove_at(path: &Path) -> Result<()> {
    fs::remove_file(path).or_exit(Exit::Kernel, || format!("cannot remove {}", path.display()))
}

/// Removes the pin of a successor that did not take the place of this one.
pub fn remove_new(name: &str) -> Result<()> {
    let path = path_of_new(name);
    if path.exists() { remove_at(&path) } else { Ok(()) }
}

/// Renames a successor's pin to this one's name, in one stroke.
pub fn replace_by_new(name: &str) -> Result<()> {
    let (from, to) = (path_of_new(name), path(name));
    fs::rename(&from, &to)
        .or_exit(Exit::Kernel, || format!("cannot rename {} to {}", from.display(), to.display()))
}

/// Opens a pinned map.
pub fn open_map(name: &str) -> Result<MapData> {
    let path = path(name);
    MapData::from_pin(&path)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned map {}", path.display()))
}

/// Opens a pinned link. Dropping it leaves the pin.
pub fn open_link(name: &str) -> Result<FdLink> {
    let path = path(name);
    PinnedLink::from_pin(&path)
        .map(FdLink::from)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned link {}", path.display()))
}

/// The pinned program.
pub fn program_info(name: &str) -> Result<ProgramInfo> {
    let path = path(name);
    ProgramInfo::from_pin(&path)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned program {}", path.display()))
}

/// The program that a killed `load` pinned beside this one.
pub fn program_info_of_new(name: &str) -> Option<ProgramInfo> {
    ProgramInfo::from_pin(path_of_new(name)).ok()
}

/// The id of the program in a pinned link.
pub fn program_in_link(name: &str) -> Result<u32> {
    let info = open_link(name)?
        .info()
        .or_exit(Exit::Kernel, || format!("cannot ask about the pinned link {}", path(name).display()))?;
    Ok(info.program_id())
}

/// The id of a pinned link.
pub fn link_id(name: &str) -> Result<u32> {
    Ok(open_link(name)?.info()?.id())
}

/// Pins a map under its name.
pub fn pin_map(map: &Map, name: &str) -> Result<()> {
    let path = path(name);
    map.pin(&path).or_exit(Exit::Kernel, || format!("cannot pin at {}", path.display()))
}

/// Pins a program beside the one that is pinned under this name.
pub fn pin_new_program(program: &mut SchedClassifier, name: &str) -> Result<()> {
    let path = path_of_new(name);
    program.pin(&path).or_exit(Exit::Kernel, || format!("cannot pin at {}", path.display()))
}

/// Pins a program of UDP's hooks in the place of the one that is pinned, in one stroke. Gives that one.
pub fn replace_program(program: &mut CgroupSockAddr, udp: UdpAttachment) -> Result<Option<CgroupSockAddr>> {
    let name = udp.program_pin;
    let (pinned, new) = (path(name), path_of_new(name));
    let old =
        if pinned.exists() { CgroupSockAddr::from_pin(&pinned, udp.hook.attach_type()).ok() } else { None };
    program.pin(&new).or_exit(Exit::Kernel, || format!("cannot pin at {}", new.display()))?;
    take_place(name)?;
    Ok(old)
}

/// Pins a new link under this name, in one stroke where one is pinned already. Gives the link that was.
pub fn pin_link(link: FdLink, name: &str) -> Result<Option<FdLink>> {
    let pinned = path(name);
    if !pinned.exists() {
        return pin_link_at(link, &pinned).map(|()| None);
    }
    let old = open_link(name)?;
    pin_link_at(link, &path_of_new(name))?;
    take_place(name)?;
    Ok(Some(old))
}

/// Renames a successor's pin to this one's name, or removes the successor's.
fn take_place(name: &str) -> Result<()> {
    replace_by_new(name).map_err(|error| match remove_new(name) {
        Ok(()) => error,
        Err(also) => error.context(format!("and then could not unpin the new {name}: {also:#}")),
    })
}

/// Takes back a [`pin_link`].
pub fn unpin_link(name: &str, old: Option<FdLink>) -> Result<()> {
    remove(name)?;
    old.map_or(Ok(()), |old| pin_link_at(old, &path(name)))
}

fn pin_link_at(link: FdLink, path: &Path) -> Result<()> {
    link.pin(path).map(drop).or_exit(Exit::Kernel, || format!("cannot pin a link at {}", path.display()))
}
