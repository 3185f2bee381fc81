//! As much of bpf(2) as it takes to be somebody else on the same hook, and to look at the hook.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;
use wsl_mirror_lab::{
    Lab, Namespace,
    checks::{OrPanic as _, ifindex, sh},
    pins::BPFFS,
};

const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const F_BEFORE: u32 = 1 << 3;

/// `r0 = -1; exit`: the next program, please.
const NEXT: [u8; 16] = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0];

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
#[derive(Default)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    zero: u32,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    zero: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are laid out as the command has them, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

fn descriptor(command: libc::c_int, attributes: &mut impl Sized) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the command made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A tc program that does nothing.
#[track_caller]
pub fn somebody_elses_program() -> OwnedFd {
    let mut load = ProgLoad {
        kind: SCHED_CLS,
        instructions: 2,
        code: NEXT.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        ..ProgLoad::default()
    };
    descriptor(PROG_LOAD, &mut load).context("loading a program that does nothing").or_panic()
}

/// Pins it at a path of the guest.
#[track_caller]
pub fn pin(guest: &Namespace, object: &OwnedFd, path: &str) {
    let name = CString::new(path).or_panic();
    let mut pin = Pin { path: name.as_ptr().addr() as u64, fd: object.as_raw_fd().cast_unsigned(), flags: 0 };
    guest.enter(|| bpf(OBJ_PIN, &mut pin)).with_context(|| format!("pinning at {path}")).or_panic();
}

/// Adds a `cls_bpf` filter of somebody else's to a clsact qdisc that is there.
#[track_caller]
pub fn add_filter(lab: &Lab, direction: &str, rest: &str) {
    let path = format!("{BPFFS}/somebody_elses");
    pin(lab.guest(), &somebody_elses_program(), &path);
    sh(
        lab,
        &format!("tc filter add dev loopback0 {direction} {rest} bpf da object-pinned {path}; rm {path}"),
    );
}

/// A program's place among those on a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    First,
    Last,
}

/// Attaches it to `loopback0` by tcx.
#[track_caller]
pub fn attach(guest: &Namespace, program: &OwnedFd, place: Place) -> OwnedFd {
    let mut create = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        ifindex: ifindex(guest, "loopback0"),
        attach_type: TCX_INGRESS,
        flags: if place == Place::First { F_BEFORE } else { 0 },
        ..LinkCreate::default()
    };
    guest.enter(|| descriptor(LINK_CREATE, &mut create)).context("attaching a program by tcx").or_panic()
}

/// Whether this kernel has tcx (6.6); on an older one, `wsl-mirror` takes `cls_bpf` by itself.
#[track_caller]
pub fn has_tcx(lab: &Lab) -> bool {
    let mut query =
        Query { ifindex: ifindex(lab.guest(), "lo"), attach_type: TCX_INGRESS, ..Query::default() };
    let has_tcx = match lab.guest().enter(|| bpf(PROG_QUERY, &mut query)) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
        Err(error) => panic!("asking for the tcx programs of lo: {error}"),
    };
    // Tests take a shorter way where there is none: not on a kernel that has it.
    assert!(
        has_tcx == lab.is_at_least((6, 6)).or_panic(),
        "6.6 has tcx and what is older has not; here: {has_tcx}"
    );
    has_tcx
}

/// The tcx programs on ingress of `loopback0` in the order in which they run, each with its link: by id.
#[track_caller]
pub fn tcx(guest: &Namespace) -> Vec<(u32, u32)> {
    tcx_on(guest, "loopback0")
}

/// The same of another interface.
#[track_caller]
pub fn tcx_on(guest: &Namespace, interface: &str) -> Vec<(u32, u32)> {
    let (mut programs, mut links) = ([0_u32; 16], [0_u32; 16]);
    let mut query = Query {
        ifindex: ifindex(guest, interface),
        attach_type: TCX_INGRESS,
        programs: programs.as_mut_ptr().addr() as u64,
        links: links.as_mut_ptr().addr() as u64,
        count: 16,
        ..Query::default()
    };
    match guest.enter(|| bpf(PROG_QUERY, &mut query)) {
        Ok(_) => {}
        // Before 6.6 there is no such hook.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Vec::new(),
        Err(error) => panic!("asking for the tcx programs: {error}"),
    }
    programs.into_iter().zip(links).take(query.count as usize).collect()
}
