//! What a client's socket remembers: where its program wanted to go, and the container that took its place.

use core::ptr;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use wsl_mirror_core::abi::{Endpoint, TRANSLATIONS, Translation, Translations};

use crate::maps::SOCKET_TRANSLATIONS;

/// What else a socket goes on to remember.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nothing: it is connected now.
    Only,
    /// The translations before.
    Another,
}

/// Remembers a translation. Gives whether that was possible: without room, or if the socket reaches the container by another
/// name already, its answers could not be told apart.
#[inline(always)]
pub fn remember(socket: *mut bpf_sock, named: Endpoint, container: Endpoint, scope: Scope) -> bool {
    // SAFETY: the caller's socket. Without room for it (`optmem_max`) the socket gets none.
    let Some(known) = (unsafe { storage(socket, BPF_SK_STORAGE_GET_F_CREATE.into()) }) else {
        return false;
    };
    if scope == Scope::Only {
        for entry in &mut known.entries {
            entry.container = Endpoint::NONE;
        }
        known.entries[0] = Translation { named, container };
        return true;
    }
    let mut place = TRANSLATIONS;
    for (index, entry) in known.entries.iter().enumerate() {
        if entry.named.is(named) {
            place = index;
        } else if entry.container.is(container) {
            return false;
        }
    }
    if place == TRANSLATIONS {
        for (index, entry) in known.entries.iter().enumerate() {
            if entry.container.is(Endpoint::NONE) {
                place = index;
            }
        }
    }
    let Some(entry) = known.entries.get_mut(place) else { return false };
    *entry = Translation { named, container };
    true
}

/// Forgets the translation to a container that the program itself now names.
#[inline(always)]
pub fn forget(socket: *mut bpf_sock, container: Endpoint) {
    // SAFETY: the caller's socket.
    let Some(known) = (unsafe { storage(socket, 0) }) else { return };
    for entry in &mut known.entries {
        if entry.container.is(container) {
            entry.container = Endpoint::NONE;
        }
    }
}

/// The name under which the program knows a peer, if the socket was translated to it.
#[inline(always)]
pub fn name_of(socket: *mut bpf_sock, peer: Endpoint) -> Option<Endpoint> {
    // SAFETY: the caller's socket.
    let known = unsafe { storage(socket, 0) }?;
    let entry = known.entries.iter().find(|entry| entry.container.is(peer))?;
    Some(entry.named)
}

/// A new element is all zeros (`bpf_selem_alloc`).
///
/// # Safety
/// The socket is null or the context's.
#[inline(always)]
unsafe fn storage(socket: *mut bpf_sock, flags: u64) -> Option<&'static mut Translations> {
    let map = ptr::from_ref(&SOCKET_TRANSLATIONS).cast_mut().cast();
    // SAFETY: the caller's socket.
    let translations = unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), flags) };
    // SAFETY: the element stays until the program ends.
    unsafe { translations.cast::<Translations>().as_mut() }
}
