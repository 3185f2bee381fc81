//! Conntrack entries: find, expire, create.
//!
//! The kfuncs are called by placeholder; see [`wsl_mirror_core::kfuncs`].

use core::mem::transmute;

use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::cty::c_void;
use wsl_mirror_core::abi::{Protocol, Reason};
use wsl_mirror_core::kfuncs::{Field, Kfunc};
use wsl_mirror_core::packet::Packet;
use wsl_mirror_core::verdict::status::DST_NAT;
use wsl_mirror_core::verdict::{Conntrack, Entry};

use crate::instructions::{load_u8, load_u64};
use crate::skb::Skb;
use crate::tuple::Tuple;

/// Lifetime of a new entry in milliseconds, until the stack has seen the packet and sets its own. Long enough for a busy
/// machine, short enough that dropped packets leave no litter in the table.
const NEW_ENTRY_MS: u32 = 5_000;

/// `NF_NAT_MANIP_DST`.
const MANIP_DST: u32 = 1;
const ENOENT: i32 = 2;

/// `struct bpf_ct_opts`, in the 12-byte form that every kernel accepts.
#[repr(C)]
struct Options {
    netns_id: i32,
    error: i32,
    protocol: u8,
    direction: u8,
    reserved: [u8; 2],
}

impl Options {
    const SIZE: u32 = size_of::<Self>() as u32;

    #[inline(always)]
    const fn of(packet: &Packet) -> Self {
        // -1: the namespace of the interface that the packet came in on.
        Self { netns_id: -1, error: 0, protocol: packet.protocol as u8, direction: 0, reserved: [0; 2] }
    }
}

/// `struct nf_conn`, in the table.
#[repr(C)]
struct NfConn([u8; 0]);
/// `struct nf_conn`, not in the table yet.
#[repr(C)]
struct NfConnInit([u8; 0]);

type Find<T> = unsafe extern "C" fn(*mut c_void, *mut bpf_sock_tuple, u32, *mut Options, u32) -> *mut T;

#[inline(always)]
unsafe fn ct_lookup(skb: &Skb, tuple: &mut Tuple, options: &mut Options) -> *mut NfConn {
    // SAFETY: the loader replaces the placeholder with the kfunc of this signature.
    let call: Find<NfConn> = unsafe { transmute(Kfunc::Lookup.placeholder() as usize) };
    // SAFETY: the pointers are valid for the lengths that are passed with them.
    unsafe { call(skb.as_ptr(), tuple.as_mut_ptr(), Tuple::SIZE, options, Options::SIZE) }
}

#[inline(always)]
unsafe fn ct_alloc(skb: &Skb, tuple: &mut Tuple, options: &mut Options) -> *mut NfConnInit {
    // SAFETY: as above.
    let call: Find<NfConnInit> = unsafe { transmute(Kfunc::Alloc.placeholder() as usize) };
    // SAFETY: as above.
    unsafe { call(skb.as_ptr(), tuple.as_mut_ptr(), Tuple::SIZE, options, Options::SIZE) }
}

#[inline(always)]
unsafe fn ct_set_nat_info(entry: *mut NfConnInit, address: &mut [u8; 16], port: u16, manip: u32) -> i32 {
    // SAFETY: as above.
    let call: unsafe extern "C" fn(*mut NfConnInit, *mut [u8; 16], i32, u32) -> i32 =
        unsafe { transmute(Kfunc::SetNatInfo.placeholder() as usize) };
    // SAFETY: `union nf_inet_addr` is 16 bytes long.
    unsafe { call(entry, address, i32::from(port), manip) }
}

#[inline(always)]
unsafe fn ct_set_timeout(entry: *mut NfConnInit, milliseconds: u32) {
    // SAFETY: as above.
    let call: unsafe extern "C" fn(*mut NfConnInit, u32) =
        unsafe { transmute(Kfunc::SetTimeout.placeholder() as usize) };
    // SAFETY: the entry came from `ct_alloc`.
    unsafe { call(entry, milliseconds) }
}

#[inline(always)]
unsafe fn ct_insert(entry: *mut NfConnInit) -> *mut NfConn {
    // SAFETY: as above.
    let call: unsafe extern "C" fn(*mut NfConnInit) -> *mut NfConn =
        unsafe { transmute(Kfunc::Insert.placeholder() as usize) };
    // SAFETY: the entry came from `ct_alloc` and is not used again.
    unsafe { call(entry) }
}

#[inline(always)]
unsafe fn ct_change_timeout(entry: *mut NfConn, milliseconds: u32) -> i32 {
    // SAFETY: as above.
    let call: unsafe extern "C" fn(*mut NfConn, u32) -> i32 =
        unsafe { transmute(Kfunc::ChangeTimeout.placeholder() as usize) };
    // SAFETY: the entry is held.
    unsafe { call(entry, milliseconds) }
}

#[inline(always)]
unsafe fn ct_release(entry: *mut NfConn) {
    // SAFETY: as above.
    let call: unsafe extern "C" fn(*mut NfConn) = unsafe { transmute(Kfunc::Release.placeholder() as usize) };
    // SAFETY: the entry is held, and not used again.
    unsafe { call(entry) }
}

/// Reads the fields that the verdict needs. The entry is held.
#[inline(always)]
fn read(entry: *const NfConn, packet: &Packet, options: &Options) -> Entry {
    // SAFETY: the entry is held.
    let status = unsafe { load_u64::<{ Field::Status.placeholder() }, _>(entry) };
    Entry {
        is_reply: options.direction != 0,
        status,
        tcp_state: match packet.protocol {
            // SAFETY: the entry is held.
            Protocol::Tcp => unsafe { load_u8::<{ Field::TcpState.placeholder() }, _>(entry) },
            Protocol::Udp => 0,
        },
        // Most flows are not translated, and need no second load.
        // SAFETY: the entry is held.
        is_to_loopback: status & DST_NAT != 0
            && unsafe { load_u8::<{ Field::ReplySource.placeholder() }, _>(entry) } == 127,
    }
}

/// Finds the packet's entry.
#[inline(always)]
pub fn find(skb: &Skb, packet: &Packet) -> Conntrack {
    let mut options = Options::of(packet);
    // SAFETY: the tuple and the options outlive the call.
    let entry = unsafe { ct_lookup(skb, &mut Tuple::of(packet), &mut options) };
    if entry.is_null() {
        return if options.error == -ENOENT { Conntrack::Missing } else { Conntrack::Failed };
    }
    let found = read(entry, packet, &options);
    // SAFETY: the entry is held, and not used again.
    unsafe { ct_release(entry) };
    Conntrack::Found(found)
}

/// Removes the packet's entry, unless another CPU has put a new one in its place by now: a lifetime of 0 expires the
/// entry, and the next lookup collects expired ones (`nf_ct_gc_expired` in `____nf_conntrack_find`).
#[inline(never)]
pub fn expire(skb: &Skb, packet: &Packet) -> Result<(), ()> {
    let mut options = Options::of(packet);
    // SAFETY: the tuple and the options outlive the call.
    let entry = unsafe { ct_lookup(skb, &mut Tuple::of(packet), &mut options) };
    if entry.is_null() {
        return Ok(());
    }
    let changed = match read(entry, packet, &options).replaceable(packet) {
        // SAFETY: not null, and held until the release below.
        Some(_) => unsafe { ct_change_timeout(entry, 0) },
        None => -1,
    };
    // SAFETY: the entry is held, and not used again.
    unsafe { ct_release(entry) };
    if changed != 0 {
        return Err(());
    }
    // SAFETY: the tuple and the options outlive the call.
    let still = unsafe { ct_lookup(skb, &mut Tuple::of(packet), &mut options) };
    if still.is_null() {
        return Ok(());
    }
    // SAFETY: not null, held, and not used again.
    unsafe { ct_release(still) };
    Err(())
}

/// Makes an entry for the packet's flow whose destination NAT is already done, to the flow's own address and port.
///
/// nat PREROUTING then skips the rules of every engine, and nothing else changes (`nf_nat_inet_fn`,
/// `nf_nat_initialized`).
#[inline(never)]
pub fn create(skb: &Skb, packet: &Packet) -> Result<(), Reason> {
    let mut options = Options::of(packet);
    // SAFETY: the tuple and the options outlive the call.
    let entry = unsafe { ct_alloc(skb, &mut Tuple::of(packet), &mut options) };
    if entry.is_null() {
        return Err(Reason::AllocFailed);
    }
    let mut address = [0u8; 16];
    address[0] = 127;
    address[3] = 1;
    // The real port: with 0 the kernel may choose another one.
    // SAFETY: the entry is not null and in no table yet.
    let translated = unsafe { ct_set_nat_info(entry, &mut address, packet.server_port, MANIP_DST) };
    // SAFETY: as above.
    unsafe { ct_set_timeout(entry, NEW_ENTRY_MS) };
    // Even if the translation failed: `bpf_ct_insert_entry` is the only way to release an entry of this kind.
    // SAFETY: as above; it is not used again.
    let entry = unsafe { ct_insert(entry) };
    if entry.is_null() {
        return Err(Reason::InsertFailed);
    }
    // SAFETY: not null, held, and not used again.
    unsafe { ct_release(entry) };
    if translated == 0 { Ok(()) } else { Err(Reason::NatFailed) }
}
