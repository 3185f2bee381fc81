//! A Linux client's system call: its addresses, and the machine around it.

use core::{mem, ptr};

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_setsockopt, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
    bpf_sk_release,
};
use aya_ebpf::programs::SockAddrContext;
use wsl_mirror_core::abi::{
    ClientOutcome, Endpoint, Policy, PortKey, PortPolicy, Protocol, Settings, Target,
};
use wsl_mirror_core::client::{self, Attempt, Decision, Machine};
use wsl_mirror_core::packet::LOCALHOST;
use wsl_mirror_core::verdict::Listener;

use crate::maps::{LOCAL_ADDRESSES, PORT_POLICY};
use crate::translations::Scope;
use crate::tuple::Tuple;
use crate::{instructions, tags, translations};

/// The client's own network namespace.
const THIS_NETNS: u64 = (BPF_F_CURRENT_NETNS as i64).cast_unsigned();
/// `SOL_SOCKET`, `SO_MARK` (`include/uapi/asm-generic/socket.h`).
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const MARK_SIZE: i32 = 4;
/// `IPPROTO_MPTCP`, whose last byte is TCP's number.
const MPTCP: u32 = 262;
/// The third word of `::ffff:0:0/96`.
const MAPPED: u32 = 0xffff_u32.to_be();

/// A system call of a client, on a TCP or UDP socket, with an IPv4 address in it.
#[derive(Clone, Copy)]
pub struct Client {
    context: *mut bpf_sock_addr,
    protocol: Protocol,
    family: Family,
}

/// Where the context has the address.
#[derive(Clone, Copy)]
enum Family {
    Ipv4,
    /// The last word of an IPv6 address.
    Mapped,
}

impl Client {
    /// The call on an IPv4 address.
    #[inline(always)]
    pub fn of_ipv4(ctx: &SockAddrContext) -> Option<Self> {
        Self::new(ctx.sock_addr, Family::Ipv4)
    }

    /// The call on an IPv6 address, if that is IPv4's.
    #[inline(always)]
    pub fn of_ipv6(ctx: &SockAddrContext) -> Option<Self> {
        // SAFETY: the context is valid while the program runs.
        let [first, second, third, _] = unsafe { &(*ctx.sock_addr).user_ip6 };
        // The context has each word by itself.
        // SAFETY: as above.
        let word = |word: &u32| unsafe { ptr::from_ref(word).read_volatile() };
        let is_mapped = word(first) == 0 && word(second) == 0 && word(third) == MAPPED;
        if is_mapped { Self::new(ctx.sock_addr, Family::Mapped) } else { None }
    }

    #[inline(always)]
    fn new(context: *mut bpf_sock_addr, family: Family) -> Option<Self> {
        // SAFETY: the context is valid while the program runs.
        let protocol = Protocol::from_number(unsafe { (*context).protocol } as u8)?;
        let client = Self { context, protocol, family };
        if client.socket().is_null() { None } else { Some(client) }
    }

    /// The address and the port of the call.
    #[inline(always)]
    pub fn destination(&self) -> Endpoint {
        // SAFETY: the context is valid while the program runs.
        let address = unsafe { self.address().read_volatile() };
        Endpoint::new(address.to_ne_bytes(), u16::from_be(self.context().user_port as u16))
    }

    /// Puts another address and port in their place.
    #[inline(always)]
    pub fn redirect(&self, to: Endpoint) {
        // SAFETY: the context is valid while the program runs, and the kernel lets these hooks write it.
        unsafe { self.address().write_volatile(u32::from_ne_bytes(to.address)) };
        // SAFETY: as above.
        unsafe { (*self.context).user_port = u32::from(to.port.to_be()) };
    }

    #[inline(always)]
    const fn context(&self) -> &bpf_sock_addr {
        // SAFETY: the context is valid while the program runs.
        unsafe { &*self.context }
    }

    #[inline(always)]
    const fn address(&self) -> *mut u32 {
        let address = match self.family {
            Family::Ipv4 => &raw const self.context().user_ip4,
            Family::Mapped => &raw const self.context().user_ip6[3],
        };
        address.cast_mut()
    }

    /// The client's socket.
    #[inline(always)]
    pub const fn socket(&self) -> *mut bpf_sock {
        // SAFETY: the union's only field.
        unsafe { self.context().__bindgen_anon_1.sk }
    }

    #[inline(always)]
    const fn socket_fields(&self) -> &bpf_sock {
        // SAFETY: the kernel holds the socket of the call; `new` has seen that there is one.
        unsafe { &*self.socket() }
    }

    /// The address that the socket is bound to.
    #[inline(always)]
    pub const fn source(&self) -> [u8; 4] {
        self.socket_fields().src_ip4.to_ne_bytes()
    }

    /// The address that a datagram comes from.
    #[inline(always)]
    pub const fn datagram_source(&self) -> [u8; 4] {
        self.context().msg_src_ip4.to_ne_bytes()
    }

    /// Whether the socket is connected to the address and port of the call.
    #[inline(always)]
    pub fn is_connected_there(&self) -> bool {
        let bpf_sock { dst_ip4, dst_port, .. } = self.socket_fields();
        self.destination().is(Endpoint::new(dst_ip4.to_ne_bytes(), u16::from_be(*dst_port)))
    }

    /// The name of this peer that the subflow of an MPTCP socket remembers: connect4 and connect6 have met that.
    #[inline(always)]
    pub fn name_by_subflow(&self, peer: Endpoint) -> Option<Endpoint> {
        if self.context().protocol != MPTCP {
            return None;
        }
        let port = self.socket_fields().src_port;
        let mut tuple = Tuple::new((peer.address, peer.port), (self.source(), port as u16));
        let (context, tuple, size) = (self.context.cast(), tuple.as_mut_ptr(), Tuple::SIZE);
        // SAFETY: the tuple is valid for the length that is passed with it.
        let subflow = unsafe { bpf_sk_lookup_tcp(context, tuple, size, THIS_NETNS, 0) };
        if subflow.is_null() {
            return None;
        }
        let named = translations::name_of(subflow, peer);
        // SAFETY: the socket came from a lookup and is released once.
        unsafe { bpf_sk_release(subflow.cast()) };
        named
    }

    /// What the client tries.
    #[inline(always)]
    pub fn attempt(&self, source: [u8; 4]) -> Attempt {
        Attempt {
            protocol: self.protocol,
            destination: self.destination(),
            source,
            is_bound_to_device: self.socket_fields().bound_dev_if != 0,
            mark: self.mark(),
        }
    }

    /// What becomes of it.
    #[inline(always)]
    pub fn decide(&self, attempt: &Attempt, settings: &Settings) -> Decision {
        let mut world = World { context: self.context, unknown: attempt.mark.into() };
        let decision = client::decide(attempt, settings, &mut world);
        // Hidden from the verifier: else it follows all later code once for each way to the decision.
        let known = decision.outcome as u64
            | u64::from(decision.is_local) << 8
            | u64::from(decision.stays_on_lo) << 16;
        let same = world.opaque(known);
        Decision {
            is_local: same >> 8 & 1 != 0,
            // SAFETY: the same number as before.
            outcome: unsafe { mem::transmute::<u32, ClientOutcome>(same as u32 & 0xff) },
            stays_on_lo: same >> 16 & 1 != 0,
            container: decision.container,
        }
    }

    /// Sends the client to the container if the decision says so and the socket can remember it; gives the outcome.
    #[inline(always)]
    pub fn translate(&self, attempt: &Attempt, decision: &Decision, scope: Scope) -> ClientOutcome {
        if !matches!(decision.outcome, ClientOutcome::Translated) {
            return decision.outcome;
        }
        if !translations::remember(self.socket(), attempt.resolved(), decision.container, scope) {
            return ClientOutcome::NotRemembered;
        }
        self.redirect(decision.container);
        ClientOutcome::Translated
    }

    /// Sets the bit that keeps the socket's packets on `lo`; gives whether it is set. The program's own bits stay.
    #[inline(always)]
    pub fn stay_on_lo(&self, bit: u32) -> bool {
        let mark = self.mark();
        mark & bit != 0 || self.set_mark(mark | bit)
    }

    /// Takes the bit off again.
    #[inline(always)]
    pub fn leave_lo(&self, bit: u32) {
        let mark = self.mark();
        if mark & bit != 0 {
            self.set_mark(mark & !bit);
        }
    }

    #[inline(always)]
    const fn mark(&self) -> u32 {
        self.socket_fields().mark
    }

    #[inline(always)]
    fn set_mark(&self, mut mark: u32) -> bool {
        let value = ptr::from_mut(&mut mark).cast();
        // SAFETY: the context is valid while the program runs; the value outlives the call.
        unsafe { bpf_setsockopt(self.context.cast(), SOL_SOCKET, SO_MARK, value, MARK_SIZE) == 0 }
    }
}

/// The machine around a client.
struct World {
    context: *mut bpf_sock_addr,
    /// A number of which the verifier knows nothing, for [`instructions::opaque`].
    unknown: u64,
}

impl Machine for World {
    #[inline(always)]
    fn netns_cookie(&mut self) -> u64 {
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_get_netns_cookie(self.context.cast()) }
    }

    #[inline(always)]
    fn opaque(&self, number: u64) -> u64 {
        instructions::opaque(number, self.unknown)
    }

    #[inline(always)]
    fn is_own_address(&mut self, address: [u8; 4]) -> bool {
        let Some(local) = LOCAL_ADDRESSES.get(0) else { return false };
        let is_listed = |listed: &[u8; 4]| u32::from_ne_bytes(*listed) == u32::from_ne_bytes(address);
        // SAFETY: the helper takes nothing.
        local.addresses.iter().any(is_listed) && local.until > unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn listener(&mut self, protocol: Protocol, destination: Endpoint) -> Listener {
        // No connection comes from port 0: from there the lookup finds only listeners.
        let mut tuple = Tuple::new((LOCALHOST, 0), (destination.address, destination.port));
        let (context, tuple, size) = (self.context.cast(), tuple.as_mut_ptr(), Tuple::SIZE);
        let socket = match protocol {
            // SAFETY: the tuple is valid for the length that is passed with it.
            Protocol::Tcp => unsafe { bpf_sk_lookup_tcp(context, tuple, size, THIS_NETNS, 0) },
            // SAFETY: as above.
            Protocol::Udp => unsafe { bpf_sk_lookup_udp(context, tuple, size, THIS_NETNS, 0) },
        };
        if socket.is_null() {
            return Listener::NONE;
        }
        let container = tags::read_container(socket);
        // SAFETY: the socket came from a lookup and is released once.
        unsafe { bpf_sk_release(socket.cast()) };
        let container = self.opaque(container);
        let target = Target {
            address: (container as u32).to_ne_bytes(),
            port: (container >> 32) as u16,
            flags: (container >> 48) as u8,
            ..Target::NONE
        };
        Listener { exists: true, owner: Policy::Unset, has_target: container != 0, target }
    }

    #[inline(always)]
    fn port_policy(&mut self, port: PortKey) -> PortPolicy {
        let policy = match PORT_POLICY.get_ptr(port) {
            // SAFETY: the element stays until the program ends; an aligned u32 is read in one piece.
            Some(policy) => unsafe { *policy },
            None => PortPolicy::default(),
        };
        // SAFETY: four bytes each, and every bit pattern is a value.
        let number = unsafe { mem::transmute::<PortPolicy, u32>(policy) };
        let same = self.opaque(number.into()) as u32;
        // SAFETY: as above.
        unsafe { mem::transmute::<u32, PortPolicy>(same) }
    }
}
