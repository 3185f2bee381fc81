//! Conntrack entries: find, expire, create; and what conntrack says about an outgoing packet.
//!
//! The kfuncs are called by placeholder; see [`wsl_mirror_core::kfuncs`].

use core::mem::transmute;

use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use wsl_mirror_core::abi::{Protocol, Reason, Settings};
use wsl_mirror_core::egress::{Outgoing, Standing};
use wsl_mirror_core::kfuncs::{Field, Kfunc};
use wsl_mirror_core::packet::{Bytes as _, Frame as _, LOCALHOST, Packet};
use wsl_mirror_core::verdict::status::{DST_NAT, SEEN_REPLY};
use wsl_mirror_core::verdict::{Conntrack, Destination, Entry};

use crate::instructions::{load_u8, load_u32, load_u64, number};
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

// An answer about an entry is one number, since a function of the program returns one register. The lower half is the
// entry's status.
const FOUND: u64 = 1 << 32;
const FAILED: u64 = 1 << 33;
const IS_REPLY: u64 = 1 << 34;
const TCP_STATE: u32 = 40;

/// The entry's status, as the verdict reads it. The entry is held.
///
/// Two entries are not what their status says:
/// - An entry on the alias that leads to another address than 127.0.0.1 is an engine's. It counts as one that translates
///   nothing: a neighbour makes it by a packet to a published port of the alias, and it must neither carry a flow nor let
///   replies past the border.
/// - An entry of a packet's own tuple that leads to this machine counts as answered: a program to which a user's rule
///   redirects a port need not answer at all.
#[inline(always)]
fn status(entry: *const NfConn, destination: u32) -> u32 {
    // SAFETY: the entry is held.
    let status = unsafe { load_u64::<{ Field::Status.placeholder() }, _>(entry) } as u32;
    if status & DST_NAT == 0 {
        return status;
    }
    // SAFETY: the entry is held.
    let target = unsafe { load_u32::<{ Field::ReplySource.placeholder() }, _>(entry) };
    let localhost = u32::from_ne_bytes(LOCALHOST);
    if destination == localhost {
        if target.to_ne_bytes()[0] == LOCALHOST[0] { status | SEEN_REPLY } else { status }
    } else if target == localhost {
        status
    } else {
        status & !DST_NAT
    }
}

/// Reads the fields that the verdict needs. The entry is held.
#[inline(always)]
fn read(entry: *const NfConn, packet: &Packet, options: &Options, destination: u32) -> u64 {
    let status = status(entry, destination);
    let tcp_state = match packet.protocol {
        // SAFETY: the entry is held.
        Protocol::Tcp => unsafe { load_u8::<{ Field::TcpState.placeholder() }, _>(entry) },
        Protocol::Udp => 0,
    };
    let is_reply = if options.direction != 0 { IS_REPLY } else { 0 };
    FOUND | u64::from(status) | is_reply | u64::from(tcp_state) << TCP_STATE
}

#[inline(always)]
const fn entry(answer: u64) -> Entry {
    Entry { is_reply: answer & IS_REPLY != 0, status: answer as u32, tcp_state: (answer >> TCP_STATE) as u8 }
}

/// Finds the entry of the packet's tuple with this destination.
#[inline(always)]
pub fn find(skb: &Skb, packet: &Packet, destination: [u8; 4]) -> Conntrack {
    let answer = lookup(skb, packet, u32::from_ne_bytes(destination));
    if answer & FOUND != 0 {
        Conntrack::Found(entry(answer))
    } else if answer & FAILED != 0 {
        Conntrack::Failed
    } else {
        Conntrack::Missing
    }
}

/// A function in the program too: several places call it.
#[inline(never)]
fn lookup(skb: &Skb, packet: &Packet, destination: u32) -> u64 {
    let mut options = Options::of(packet);
    let mut tuple = Tuple::to(packet, destination.to_ne_bytes());
    // SAFETY: the tuple and the options outlive the call.
    let entry = unsafe { ct_lookup(skb, &mut tuple, &mut options) };
    if entry.is_null() {
        return if options.error == -ENOENT { 0 } else { FAILED };
    }
    let answer = read(entry, packet, &options, destination);
    // SAFETY: the entry is held, and not used again.
    unsafe { ct_release(entry) };
    answer
}

/// Removes the entry of the packet's tuple with this destination, unless another CPU has put a new one in its place by
/// now: a lifetime of 0 expires the entry, and the next lookup collects expired ones (`nf_ct_gc_expired` in
/// `____nf_conntrack_find`).
#[inline(always)]
pub fn expire(skb: &Skb, packet: &Packet, address: [u8; 4], destination: Destination) -> Result<(), ()> {
    let is_alias = u32::from(matches!(destination, Destination::Alias));
    if expire_entry(skb, packet, u32::from_ne_bytes(address), is_alias) == 0 { Ok(()) } else { Err(()) }
}

#[inline(never)]
fn expire_entry(skb: &Skb, packet: &Packet, address: u32, is_alias: u32) -> u64 {
    let destination = if is_alias != 0 { Destination::Alias } else { Destination::Own };
    let mut options = Options::of(packet);
    let mut tuple = Tuple::to(packet, address.to_ne_bytes());
    // SAFETY: the tuple and the options outlive the call.
    let found = unsafe { ct_lookup(skb, &mut tuple, &mut options) };
    if found.is_null() {
        return 0;
    }
    let changed = if entry(read(found, packet, &options, address)).is_expirable(packet.role, destination) {
        // SAFETY: not null, and held until the release below.
        unsafe { ct_change_timeout(found, 0) }
    } else {
        -1
    };
    // SAFETY: the entry is held, and not used again.
    unsafe { ct_release(found) };
    if changed != 0 {
        return 1;
    }
    // SAFETY: the tuple and the options outlive the call.
    let still = unsafe { ct_lookup(skb, &mut tuple, &mut options) };
    if still.is_null() {
        return 0;
    }
    // SAFETY: not null, held, and not used again.
    unsafe { ct_release(still) };
    1
}

/// Makes an entry of the packet's tuple with this destination, whose destination NAT is already done: to 127.0.0.1 and
/// the packet's port.
///
/// nat PREROUTING then skips the rules of every engine (`nf_nat_inet_fn`, `nf_nat_initialized`). With the alias as the
/// destination the kernel translates the flow's packets to the listener; with 127.0.0.1 nothing changes.
#[inline(always)]
pub fn create(skb: &Skb, packet: &Packet, destination: [u8; 4]) -> Result<(), Reason> {
    match create_entry(skb, packet, u32::from_ne_bytes(destination)) {
        0 => Ok(()),
        1 => Err(Reason::AllocFailed),
        2 => Err(Reason::InsertFailed),
        _ => Err(Reason::NatFailed),
    }
}

#[inline(never)]
fn create_entry(skb: &Skb, packet: &Packet, destination: u32) -> u64 {
    let mut options = Options::of(packet);
    let mut tuple = Tuple::to(packet, destination.to_ne_bytes());
    // SAFETY: the tuple and the options outlive the call.
    let entry = unsafe { ct_alloc(skb, &mut tuple, &mut options) };
    if entry.is_null() {
        return 1;
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
        return 2;
    }
    // SAFETY: not null, held, and not used again.
    unsafe { ct_release(entry) };
    if translated == 0 { 0 } else { 3 }
}

/// `struct sk_buff`.
#[repr(C)]
struct SkBuff([u8; 0]);

/// Offset of the IPv4 header, and the lengths of what is read from there and from the transport header.
const IPV4: usize = 14;
const IPV4_MIN: usize = 20;
const PORTS: usize = 4;

/// `NFCT_INFOMASK`: the bits of `skb->_nfct` that hold `enum ip_conntrack_info`.
const INFO: u64 = 7;
/// `IP_CT_ESTABLISHED_REPLY`.
const ESTABLISHED_REPLY: u64 = 3;
/// `IP_CT_RELATED_REPLY`: the RST of a REJECT rule (`nf_ct_attach`).
const RELATED_REPLY: u64 = 4;

/// What conntrack has noted in an outgoing packet. Later fragments have the note too (`ip_copy_metadata`).
#[inline(always)]
pub fn standing(skb: &Skb) -> Standing {
    // SAFETY: the loader replaces the placeholder with the kfunc of this signature.
    let call: unsafe extern "C" fn(*mut c_void) -> *const SkBuff =
        unsafe { transmute(Kfunc::KernelContext.placeholder() as usize) };
    // SAFETY: the context is valid while the program runs.
    let buffer = unsafe { call(skb.as_ptr()) };
    // SAFETY: the kernel's own structure behind the context.
    let note = unsafe { load_u64::<{ Field::SkbConntrack.placeholder() }, _>(buffer) };
    if !matches!(note & INFO, ESTABLISHED_REPLY | RELATED_REPLY) {
        return Standing::Other;
    }
    // Replies that come from the alias belong to an entry with the alias as its destination. Where they really come from
    // tells whether the entry translates it, and to what.
    let target = (note & !INFO) + number::<{ Field::ReplySource.number_placeholder() }>();
    // SAFETY: the packet holds the entry. The helper checks the address itself.
    match unsafe { bpf_probe_read_kernel(target as *const [u8; 4]) } {
        Ok(LOCALHOST) => Standing::Reply,
        _ => Standing::Other,
    }
}

/// Before Linux 6.2: whether the packet's addresses, turned round, are those of a carried flow.
#[inline(always)]
pub fn standing_by_lookup(skb: &Skb, settings: &Settings, outgoing: Outgoing) -> Standing {
    // A later fragment has no ports, and nothing can be done with it alone.
    if outgoing.is_later_fragment {
        return Standing::Reply;
    }
    let (Some(ip), Some(ports)) = (skb.at(IPV4, IPV4_MIN), skb.at(usize::from(outgoing.transport), PORTS))
    else {
        return Standing::Other;
    };
    let mut tuple = Tuple::new((ip.four(16), ports.u16(2)), (settings.alias, ports.u16(0)));
    let mut options =
        Options { netns_id: -1, error: 0, protocol: outgoing.protocol as u8, direction: 0, reserved: [0; 2] };
    // SAFETY: the tuple and the options outlive the call.
    let entry = unsafe { ct_lookup(skb, &mut tuple, &mut options) };
    if entry.is_null() {
        return Standing::Other;
    }
    let status = status(entry, u32::from_ne_bytes(settings.alias));
    // SAFETY: the entry is held, and not used again.
    unsafe { ct_release(entry) };
    if options.direction == 0 && status & DST_NAT != 0 { Standing::Reply } else { Standing::Other }
}
