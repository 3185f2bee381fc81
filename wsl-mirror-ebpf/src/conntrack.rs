//! Conntrack entries: find, expire, create; and what conntrack says about an outgoing packet.
//!
//! The kfuncs are called by placeholder; see [`wsl_mirror_core::kfuncs`].

use core::mem::transmute;

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, bpf_sock_tuple};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use wsl_mirror_core::abi::{DirectFlow, DirectFlowKey, Protocol, Reason, Settings};
use wsl_mirror_core::egress::{Outgoing, Standing};
use wsl_mirror_core::kfuncs::{Field, Kfunc};
use wsl_mirror_core::packet::{Bytes as _, Frame as _, Packet};
use wsl_mirror_core::verdict::status::DST_NAT;
use wsl_mirror_core::verdict::{Conntrack, End, Entry, TupleKind};

use crate::flow;
use crate::instructions::{load_u8, load_u16, load_u32, load_u64, number};
use crate::maps::DIRECT_FLOWS;
use crate::skb::Skb;
use crate::tuple::Tuple;

/// Lifetime of a new entry in milliseconds, until the stack has seen the packet and sets its own. Long enough for a busy
/// machine, short enough that dropped packets leave no litter in the table.
const NEW_ENTRY_MS: u32 = 5_000;

/// `NF_NAT_MANIP_SRC`.
const MANIP_SRC: u32 = 0;
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
unsafe fn ct_set_nat_info(entry: *mut NfConnInit, address: &mut [u32; 4], port: u16, manip: u32) -> i32 {
    // SAFETY: as above.
    let call: unsafe extern "C" fn(*mut NfConnInit, *mut [u32; 4], i32, u32) -> i32 =
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

// An answer about an entry is one number, since a function of the program returns one register. The lowest 8 bits are
// the entry's status, the upper half is the address from which replies come, below it the port.
const STATUS: u64 = 0xff;
const FOUND: u64 = 1 << 8;
const FAILED: u64 = 1 << 9;
const IS_REPLY: u64 = 1 << 10;
/// Four bits: the largest is 9 (`TCP_CONNTRACK_SYN_SENT2`).
const TCP_STATE: u32 = 12;
const REPLY_PORT: u32 = 16;
const REPLY_SOURCE: u32 = 32;

/// Reads the fields that the verdict needs. The entry is held.
#[inline(always)]
fn read(entry: *const NfConn, protocol: Protocol, options: &Options) -> u64 {
    // SAFETY: the entry is held.
    let status = unsafe { load_u64::<{ Field::Status.placeholder() }, _>(entry) } & STATUS;
    // SAFETY: the entry is held.
    let reply_source = unsafe { load_u32::<{ Field::ReplySource.placeholder() }, _>(entry) };
    // SAFETY: the entry is held.
    let reply_port = u16::from_be(unsafe { load_u16::<{ Field::ReplySourcePort.placeholder() }, _>(entry) });
    let tcp_state = match protocol {
        // SAFETY: the entry is held.
        Protocol::Tcp => unsafe { load_u8::<{ Field::TcpState.placeholder() }, _>(entry) },
        Protocol::Udp => 0,
    };
    let is_reply = if options.direction != 0 { IS_REPLY } else { 0 };
    let replies = u64::from(reply_port) << REPLY_PORT | u64::from(reply_source) << REPLY_SOURCE;
    FOUND | status | is_reply | (u64::from(tcp_state) & 0xf) << TCP_STATE | replies
}

#[inline(always)]
const fn entry(answer: u64) -> Entry {
    Entry {
        is_reply: answer & IS_REPLY != 0,
        status: (answer & STATUS) as u32,
        tcp_state: (answer >> TCP_STATE) as u8 & 0xf,
        reply_port: (answer >> REPLY_PORT) as u16,
        reply_source: ((answer >> REPLY_SOURCE) as u32).to_ne_bytes(),
    }
}

/// The addresses of a flow's tuple; the ports are its packets'.
#[derive(Clone, Copy)]
pub struct Addresses {
    pub source: [u8; 4],
    pub destination: [u8; 4],
}

/// Finds the entry of the packet's ports between these addresses.
#[inline(always)]
pub fn find(skb: &Skb, packet: &Packet, addresses: Addresses) -> Conntrack {
    let Addresses { source, destination } = addresses;
    let (source, destination) = (u32::from_ne_bytes(source), u32::from_ne_bytes(destination));
    let answer = wsl_mirror_find(skb.raw(), flow::pack(packet), source, destination);
    if answer & FOUND != 0 {
        Conntrack::Found(entry(answer))
    } else if answer & FAILED != 0 {
        Conntrack::Failed
    } else {
        Conntrack::Missing
    }
}

/// A function in the program too, and a global one: the verifier follows it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn wsl_mirror_find(context: *mut __sk_buff, flow: u64, source: u32, destination: u32) -> u64 {
    let (skb, packet) = (&Skb::of(context), &flow::unpack(flow, source));
    let mut options = Options::of(packet);
    let mut tuple = Tuple::between(packet, source.to_ne_bytes(), destination.to_ne_bytes());
    // SAFETY: the tuple and the options outlive the call.
    let entry = unsafe { ct_lookup(skb, &mut tuple, &mut options) };
    if entry.is_null() {
        return if options.error == -ENOENT { 0 } else { FAILED };
    }
    let answer = read(entry, packet.protocol, &options);
    // SAFETY: the entry is held, and not used again.
    unsafe { ct_release(entry) };
    answer
}

/// Removes the entry of the packet's ports between these addresses, unless another CPU has put a new one in its place by
/// now: a lifetime of 0 expires the entry, and the next lookup collects expired ones (`nf_ct_gc_expired` in
/// `____nf_conntrack_find`).
#[inline(always)]
pub fn expire(
    skb: &Skb,
    packet: &Packet,
    addresses: Addresses,
    kind: TupleKind,
    target: End,
) -> Result<(), ()> {
    let target = u64::from(target.port) << 32 | u64::from(u32::from_ne_bytes(target.address));
    let kind = (kind as u64) << 48 | target;
    let Addresses { source, destination } = addresses;
    let (source, destination) = (u32::from_ne_bytes(source), u32::from_ne_bytes(destination));
    match wsl_mirror_expire(skb.raw(), flow::pack(packet), source, destination, kind) {
        0 => Ok(()),
        _ => Err(()),
    }
}

/// The kind of the tuple is in the upper 16 bits of `kind`, the target's port and address are below.
///
/// Global, as [`wsl_mirror_find`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn wsl_mirror_expire(
    context: *mut __sk_buff,
    flow: u64,
    source: u32,
    destination: u32,
    kind: u64,
) -> u64 {
    const STEERED: u64 = TupleKind::Steered as u64;
    const DIRECT: u64 = TupleKind::Direct as u64;
    let (skb, packet) = (&Skb::of(context), &flow::unpack(flow, source));
    let target = End { address: (kind as u32).to_ne_bytes(), port: (kind >> 32) as u16 };
    let kind = match kind >> 48 {
        STEERED => TupleKind::Steered,
        DIRECT => TupleKind::Direct,
        _ => TupleKind::Own,
    };
    let mut options = Options::of(packet);
    let mut tuple = Tuple::between(packet, source.to_ne_bytes(), destination.to_ne_bytes());
    // SAFETY: the tuple and the options outlive the call.
    let found = unsafe { ct_lookup(skb, &mut tuple, &mut options) };
    if found.is_null() {
        return 0;
    }
    let found_entry = entry(read(found, packet.protocol, &options));
    let changed = if found_entry.is_expirable(packet.role, kind, target) {
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

/// Makes an entry of the packet's ports between these addresses, whose destination NAT is already done: to the flow's
/// address and port. If the flow has a source, source NAT is done, too.
///
/// nat PREROUTING then skips the rules of every engine (`nf_nat_inet_fn`, `nf_nat_initialized`). With the alias as the
/// destination the kernel translates the flow's packets; with 127.0.0.1 nothing changes.
#[inline(always)]
pub fn create(skb: &Skb, packet: &Packet, addresses: Addresses, flow: &DirectFlow) -> Result<(), Reason> {
    let Addresses { source, destination } = addresses;
    let pair = |low: [u8; 4], high: [u8; 4]| {
        u64::from(u32::from_ne_bytes(low)) | u64::from(u32::from_ne_bytes(high)) << 32
    };
    let ports = u64::from(flow.port) | u64::from(flow.source_port) << 16;
    let (tuple, ends) = (pair(source, destination), pair(flow.address, flow.source));
    match wsl_mirror_create(skb.raw(), flow::pack(packet), tuple, ends, ports) {
        0 => Ok(()),
        1 => Err(Reason::AllocFailed),
        2 => Err(Reason::InsertFailed),
        _ => Err(Reason::NatFailed),
    }
}

/// Of `tuple` the source is in the lower half; of `ends` the address to which the flow is translated, of `ports` its port.
///
/// Global, as [`wsl_mirror_find`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn wsl_mirror_create(
    context: *mut __sk_buff,
    flow: u64,
    tuple: u64,
    ends: u64,
    ports: u64,
) -> u64 {
    let (source, destination) = (tuple as u32, (tuple >> 32) as u32);
    let (skb, packet) = (&Skb::of(context), &flow::unpack(flow, source));
    let flow = DirectFlow {
        address: (ends as u32).to_ne_bytes(),
        source: ((ends >> 32) as u32).to_ne_bytes(),
        port: ports as u16,
        source_port: (ports >> 16) as u16,
    };
    let mut options = Options::of(packet);
    let mut tuple = Tuple::between(packet, source.to_ne_bytes(), destination.to_ne_bytes());
    // SAFETY: the tuple and the options outlive the call.
    let entry = unsafe { ct_alloc(skb, &mut tuple, &mut options) };
    if entry.is_null() {
        return 1;
    }
    let has_source = u32::from_ne_bytes(flow.source) != 0;
    let mut address = [u32::from_ne_bytes(flow.address), 0, 0, 0];
    // The real port: with 0 the kernel may choose another one.
    // SAFETY: the entry is not null and in no table yet.
    let mut translated = unsafe { ct_set_nat_info(entry, &mut address, flow.port, MANIP_DST) };
    if has_source {
        address[0] = u32::from_ne_bytes(flow.source);
        // With port 0 the kernel keeps the client's port if it is free for this container.
        // SAFETY: as above.
        translated |= unsafe { ct_set_nat_info(entry, &mut address, flow.source_port, MANIP_SRC) };
    }
    // SAFETY: as above.
    unsafe { ct_set_timeout(entry, NEW_ENTRY_MS) };
    // Even if the translation failed: `bpf_ct_insert_entry` is the only way to release an entry of this kind.
    // SAFETY: as above; it is not used again.
    let entry = unsafe { ct_insert(entry) };
    if entry.is_null() {
        return 2;
    }
    if has_source && matches!(packet.protocol, Protocol::Tcp) {
        // SAFETY: the entry is held.
        let port = u16::from_be(unsafe { load_u16::<{ Field::ReplyPort.placeholder() }, _>(entry) });
        remember(packet, DirectFlow { source_port: port, ..flow });
    }
    // SAFETY: not null, held, and not used again.
    unsafe { ct_release(entry) };
    if translated == 0 { 0 } else { 3 }
}

/// Notes the translation of a direct TCP flow.
#[inline(always)]
fn remember(packet: &Packet, flow: DirectFlow) {
    // An LRU map has room. If the insertion fails all the same, the flow ends with its conntrack entry.
    let _ = DIRECT_FLOWS.insert(flow_key(packet), flow, u64::from(BPF_ANY));
}

/// The translation of the direct TCP flow to which the packet belonged before conntrack lost its entry.
#[inline(always)]
pub fn recall(packet: &Packet) -> Option<DirectFlow> {
    // SAFETY: the element stays readable until the program ends (RCU). Of a flow that begins meanwhile on the same ports,
    // it may be half the old and half the new one: its packets reach nobody.
    DIRECT_FLOWS.get_ptr(flow_key(packet)).map(|flow| unsafe { *flow })
}

#[inline(always)]
const fn flow_key(packet: &Packet) -> DirectFlowKey {
    DirectFlowKey { client_port: packet.client_port, server_port: packet.server_port }
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
pub fn standing(skb: &Skb, kind: TupleKind) -> Standing {
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
    let entry = note & !INFO;
    let source = entry + number::<{ Field::ReplySource.number_placeholder() }>();
    // SAFETY: the packet holds the entry. The helper checks the address itself.
    let Ok(reply_source) = (unsafe { bpf_probe_read_kernel(source as *const [u8; 4]) }) else {
        return Standing::Other;
    };
    let status = match kind {
        TupleKind::Direct => {
            let status = entry + number::<{ Field::Status.number_placeholder() }>();
            // SAFETY: as above.
            match unsafe { bpf_probe_read_kernel(status as *const u64) } {
                Ok(status) => status as u32,
                Err(_) => return Standing::Other,
            }
        }
        // That a reply comes from 127.0.0.1 and leaves with the alias as its source says as much.
        TupleKind::Steered | TupleKind::Own => DST_NAT,
    };
    let entry = Entry { is_reply: false, status, tcp_state: 0, reply_source, reply_port: 0 };
    if entry.is_ours(kind) { Standing::Reply } else { Standing::Other }
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
    let found = unsafe { ct_lookup(skb, &mut tuple, &mut options) };
    if found.is_null() {
        return Standing::Other;
    }
    let answer = read(found, outgoing.protocol, &options);
    // SAFETY: the entry is held, and not used again.
    unsafe { ct_release(found) };
    if entry(answer).carries(outgoing.kind) { Standing::Reply } else { Standing::Other }
}
