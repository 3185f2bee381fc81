//! Tags: each socket carries its owner, the process that bound it or took it over. A listener of an engine carries its
//! target, too.
//!
//! A tag moves with the socket when its descriptor is handed on, and dies with the socket. Another socket on the same
//! port has its own.

use core::{mem, ptr};

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_uid_gid};
use wsl_mirror_core::abi::{Owner, Policy, Target};

use crate::maps::{OWNERS, SOCKET_OWNER, SOCKET_TARGET};

/// What the hooks return on every path: 0 would make bind(2) fail, on the whole machine.
pub const ALLOW: i32 = 1;

/// What to do with a socket that has no tag.
///
/// By its flag for `bpf_sk_storage_get`.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum IfMissing {
    Skip = 0,
    Create = BPF_SK_STORAGE_GET_F_CREATE as u64,
}

/// An owner, as it is copied: the compiler would copy the name byte by byte.
type Words = [u32; size_of::<Owner>() / size_of::<u32>()];

/// The process that made the system call.
#[inline(always)]
pub fn current_process() -> Option<Owner> {
    let name = bpf_get_current_comm().ok()?;
    // The group's id is above.
    Some(Owner { uid: bpf_get_current_uid_gid() as u32, name })
}

/// Tags a socket. The owner stays where it is: moved, the compiler copies it byte by byte.
///
/// # Safety
/// `socket` is null, a socket that is held, or a context that stands for one.
#[inline(always)]
pub unsafe fn write(socket: *mut c_void, owner: &mut Owner, if_missing: IfMissing) {
    // SAFETY: the caller's promise.
    let tag = unsafe { storage(socket, owner, if_missing) };
    if tag.is_null() {
        return;
    }
    // SAFETY: as aligned as its first field; all bit patterns are values.
    let words = unsafe { mem::transmute::<Owner, Words>(*owner) };
    // SAFETY: the element stays until the program ends. A reader on another CPU may see half of the old name and half
    // of the new: no owner has that name, and its packet passes.
    unsafe { *tag.cast::<Words>() = words }
}

#[inline(always)]
unsafe fn read(tag: *const Owner) -> Owner {
    // SAFETY: the caller's element, which is as aligned as its first field.
    let words = unsafe { *tag.cast::<Words>() };
    // SAFETY: all bit patterns are values.
    unsafe { mem::transmute::<Words, Owner>(words) }
}

/// The policy of a socket's owner (`OWNERS`). The socket comes from a lookup.
#[inline(always)]
pub fn policy(socket: *mut bpf_sock) -> Policy {
    // SAFETY: the socket is held.
    let tag = unsafe { storage(socket.cast(), ptr::null_mut(), IfMissing::Skip) };
    if tag.is_null() {
        return Policy::Unset;
    }
    // SAFETY: the element stays until the program ends.
    match owner_policy(unsafe { &*tag }) {
        // SAFETY: as above.
        Policy::Unset => owner_policy(&unsafe { read(tag) }.of_any_user()),
        policy => policy,
    }
}

#[inline(always)]
fn owner_policy(owner: &Owner) -> Policy {
    let Some(policy) = OWNERS.get_ptr(owner) else { return Policy::Unset };
    // SAFETY: the element stays until the program ends; an aligned u32 is read in one piece.
    unsafe { *policy }.policy()
}

/// Copies the socket's target, and notes on it when a direct flow was found unanswered, unless that is 0. Gives whether the
/// socket has a target.
#[inline(always)]
pub fn read_target(socket: *mut bpf_sock, copy: &mut Target, unanswered_at: u64) -> bool {
    let target = target_of(socket);
    if target.is_null() {
        return false;
    }
    // SAFETY: the element stays until the program ends. User space never changes it, but puts another in its place.
    *copy = unsafe { *target };
    if unanswered_at != 0 {
        // SAFETY: as above; an aligned u64 is written in one piece.
        unsafe { (*target).unanswered_at = unanswered_at };
    }
    true
}

/// What a client needs to know of the socket's target, in one number: the container's address in the lowest four bytes, its
/// port in the next two, then the flags. 0: there is no target.
#[inline(always)]
pub fn read_container(socket: *mut bpf_sock) -> u64 {
    // SAFETY: the element stays until the program ends.
    let Some(&Target { address, port, flags, .. }) = (unsafe { target_of(socket).as_ref() }) else {
        return 0;
    };
    u64::from(u32::from_ne_bytes(address)) | u64::from(port) << 32 | u64::from(flags) << 48
}

/// The target of a socket from a lookup, or null.
#[inline(always)]
fn target_of(socket: *mut bpf_sock) -> *mut Target {
    let map = ptr::from_ref(&SOCKET_TARGET).cast_mut().cast();
    // SAFETY: the socket is held.
    unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), 0) }.cast()
}

/// The socket's tag. The kernel reads `first` only where it creates one.
#[inline(always)]
unsafe fn storage(socket: *mut c_void, first: *mut Owner, if_missing: IfMissing) -> *mut Owner {
    let map = ptr::from_ref(&SOCKET_OWNER).cast_mut().cast();
    // SAFETY: the caller's socket; the value has the map's size.
    unsafe { bpf_sk_storage_get(map, socket, first.cast(), if_missing as u64) }.cast()
}
