//! Who serves a socket: a tag that the socket itself carries, written by the process that binds it or takes it over.
//!
//! The tag goes with the socket when its descriptor is handed on, dies with it, and cannot be taken for that of another
//! socket on the same port.

use core::{mem, ptr};

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{HashMap, SkStorage};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_uid_gid};
use aya_ebpf::macros::{btf_map, cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use wsl_mirror_core::abi::{Owner, OwnerPolicy, Policy, Protocol, SocketDelivery};

use crate::NO_PREALLOC;

/// What the hooks return, whatever happens: 0 would make bind(2) fail, on the whole machine.
const GO_ON: i32 = 1;

const TCP: u32 = Protocol::Tcp as u32;
const UDP: u32 = Protocol::Udp as u32;
/// `BPF_TCP_LISTEN` (`include/uapi/linux/bpf.h`).
const TCP_LISTEN: u32 = 10;

#[btf_map]
static SOCKET_OWNER: SkStorage<Owner> = SkStorage::new();

/// What was learned about delivering to a listener: it goes with the listener.
#[btf_map]
static SOCKET_DELIVERY: SkStorage<SocketDelivery> = SkStorage::new();

#[btf_map]
static OWNERS: HashMap<Owner, OwnerPolicy, 1024, NO_PREALLOC> = HashMap::new();

/// A process has bound a socket; its port is chosen by now, also where it asked for any.
#[cgroup_sock(post_bind4)]
pub fn wsl_mirror_bd4(ctx: SockContext) -> i32 {
    bound(&ctx)
}

/// Likewise, an IPv6 socket: it may serve IPv4 as well.
#[cgroup_sock(post_bind6)]
pub fn wsl_mirror_bd6(ctx: SockContext) -> i32 {
    bound(&ctx)
}

/// A process asks for the address of a socket: Go's `net.FileListener` does, on a descriptor that it was handed.
#[cgroup_sock_addr(getsockname4)]
pub fn wsl_mirror_gs4(ctx: SockAddrContext) -> i32 {
    asked(&ctx)
}

/// Likewise, of an IPv6 socket.
#[cgroup_sock_addr(getsockname6)]
pub fn wsl_mirror_gs6(ctx: SockAddrContext) -> i32 {
    asked(&ctx)
}

#[inline(always)]
fn bound(ctx: &SockContext) -> i32 {
    let Some(mut owner) = current() else { return GO_ON };
    // SAFETY: the context stands for the socket that was bound.
    let tag = unsafe { storage(ctx.sock.cast(), &raw mut owner, u64::from(BPF_SK_STORAGE_GET_F_CREATE)) };
    write(tag, owner);
    GO_ON
}

#[inline(always)]
fn asked(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let Some(mut owner) = current() else { return GO_ON };
    // Accepted and connecting sockets, whose address everybody asks for, have no tag, and nobody asks for theirs. What
    // serves and has none was bound before the hooks came, and nobody has looked at it yet.
    let (first, flags) = if serves(socket) {
        (&raw mut owner, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
    } else {
        (ptr::null_mut(), 0)
    };
    // SAFETY: the socket that is asked about.
    let tag = unsafe { storage(socket.cast(), first, flags) };
    write(tag, owner);
    GO_ON
}

/// Whether flows can begin at this socket: a TCP listener, or bound for UDP and to nobody in particular.
#[inline(always)]
fn serves(socket: *const bpf_sock) -> bool {
    if socket.is_null() {
        return false;
    }
    // SAFETY: the socket that is asked about, which is held.
    let socket = unsafe { &*socket };
    match socket.protocol {
        TCP => socket.state == TCP_LISTEN,
        UDP => socket.src_port != 0 && socket.dst_port == 0,
        _ => false,
    }
}

/// The process that runs.
#[inline(always)]
fn current() -> Option<Owner> {
    let name = bpf_get_current_comm().ok()?;
    Some(Owner { uid: bpf_get_current_uid_gid() as u32, name })
}

#[inline(always)]
fn write(tag: *mut Owner, owner: Owner) {
    if !tag.is_null() {
        // SAFETY: the element stays until the program ends. A reader on another CPU may see half of the old name and
        // half of the new: that is nobody's name, and its packet passes.
        unsafe { *tag.cast::<Words>() = mem::transmute::<Owner, Words>(owner) }
    }
}

/// An owner, as it is copied: the compiler would copy the name byte by byte.
type Words = [u32; size_of::<Owner>() / size_of::<u32>()];

#[inline(always)]
unsafe fn read(tag: *const Owner) -> Owner {
    // SAFETY: the caller's element, which is as aligned as its first field; all bit patterns are values.
    unsafe { mem::transmute::<Words, Owner>(*tag.cast::<Words>()) }
}

/// What is written about the owner of a socket that a lookup has found; nothing if it carries no tag.
#[inline(always)]
pub fn policy(socket: *mut bpf_sock) -> Policy {
    // SAFETY: the socket is held.
    let tag = unsafe { storage(socket.cast(), ptr::null_mut(), 0) };
    if tag.is_null() {
        return Policy::Unset;
    }
    // SAFETY: the element stays until the program ends.
    match written(unsafe { &*tag }) {
        // SAFETY: as above.
        Policy::Unset => written(&unsafe { read(tag) }.of_any_user()),
        policy => policy,
    }
}

#[inline(always)]
fn written(owner: &Owner) -> Policy {
    let Some(policy) = OWNERS.get_ptr(owner) else { return Policy::Unset };
    // SAFETY: the element stays until the program ends; an aligned u32 is read whole.
    unsafe { *policy }.policy()
}

/// Whether a rule was seen to eat what goes to this socket and not by `lo`.
#[inline(always)]
pub fn is_delivered_by_lo(socket: *mut bpf_sock) -> bool {
    // SAFETY: the socket is held.
    let delivery: *mut SocketDelivery =
        unsafe { bpf_sk_storage_get(map(&SOCKET_DELIVERY), socket.cast(), ptr::null_mut(), 0) }.cast();
    // SAFETY: the element stays until the program ends.
    !delivery.is_null() && unsafe { (*delivery).by_lo } == 1
}

/// From now on what goes to this socket is delivered by `lo`. No room: then it is found out again.
#[inline(always)]
pub fn deliver_by_lo(socket: *mut bpf_sock) {
    let mut first = SocketDelivery { by_lo: 1 };
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the socket is held; the value has the map's size. Whatever is there already says the same.
    unsafe { bpf_sk_storage_get(map(&SOCKET_DELIVERY), socket.cast(), (&raw mut first).cast(), create) };
}

#[inline(always)]
unsafe fn storage(socket: *mut c_void, first: *mut Owner, flags: u64) -> *mut Owner {
    // SAFETY: the caller's socket; the value has the map's size.
    unsafe { bpf_sk_storage_get(map(&SOCKET_OWNER), socket, first.cast(), flags) }.cast()
}

#[inline(always)]
const fn map<T>(map: &'static SkStorage<T>) -> *mut c_void {
    ptr::from_ref(map).cast_mut().cast()
}
