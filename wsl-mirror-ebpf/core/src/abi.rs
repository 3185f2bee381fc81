//! Map keys and values, verdicts and reasons.
//!
//! Everything here is `#[repr(C)]` without implicit padding, because its bytes are compared (hash keys),
//! shown (`bpftool map dump`) and written by hand (`bpftool map update`). Ports are in host order throughout:
//! 8080 is shown as 8080. A change to anything in a map is a new layout: [`LAYOUT`] and with it the pin
//! directory change.

use core::mem::transmute;

/// The version of this file's layout; part of the pin path (`/sys/fs/bpf/wsl-mirror/v1`).
pub const LAYOUT: u32 = 1;

/// The bit of `skb->mark` that steered packets get unless the configuration names others.
///
/// Bits that others use: 0x1 (WSL's own `WSLOUTPUT` chain), 0x2000 (netavark, CNI portmap), 0x4000 and 0x8000
/// (kube-proxy), 0xf00 (Cilium), 0xff0000 (Tailscale).
pub const DEFAULT_MARK: u32 = 0x1000;

/// How many ports there are, of both protocols: the length of `PORT_PACKETS`.
pub const PORTS: usize = 2 * 65_536;

/// A transport protocol that can be steered, by its IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// `IPPROTO_TCP`.
    Tcp = 6,
    /// `IPPROTO_UDP`.
    Udp = 17,
}

impl Protocol {
    /// Both, in the order in which they are listed.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The protocol with this IP protocol number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// `tcp` or `udp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What a port shall get.
///
/// In maps it is a byte, because the world may write any byte there (`bpftool map update`): a value that is
/// no policy counts as [`Policy::Unset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Policy {
    /// Nobody said anything here: ask the next one.
    Unset = 0,
    /// Leave the port alone: it is exempt.
    Pass = 1,
    /// Steer flows to whoever listens on the port.
    Steer = 2,
}

impl Policy {
    /// The policy that this byte stands for.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Pass,
            2 => Self::Steer,
            _ => Self::Unset,
        }
    }

    /// `unset`, `pass` or `steer`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Pass => "pass",
            Self::Steer => "steer",
        }
    }
}

/// Value of `SETTINGS` (array, one element): what the loader tells the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// [`LAYOUT`] of the loader that wrote this. 0: nobody has written yet; every packet passes.
    pub layout: u32,
    /// The bits that are set in `skb->mark` of a steered packet. No other bit is touched.
    pub mark: u32,
    /// A [`Policy`]: what ports get that neither `PORT_POLICY` nor `OWNERS` says anything about.
    pub default_policy: u32,
    /// A [`Hook`]: how the program is attached.
    pub hook: u32,
    /// Index of the interface that it is attached to.
    pub ifindex: u32,
    /// Index of the interface on which the loader made the `clsact` qdisc, 0 if it made none: `unload` takes
    /// away what we made and nothing else.
    pub clsact_ifindex: u32,
    /// Name of the interface, filled up with zeros.
    pub interface: [u8; 16],
    /// Index of `lo` if packets can be delivered by it: the policy rule and the sysctls that this needs are in place,
    /// and nothing was found that would lose such a packet. 0: all take the plain way.
    pub lo_ifindex: u32,
}

impl Settings {
    /// The name of the interface, as far as it is UTF-8.
    pub fn interface_name(&self) -> &str {
        let len = self.interface.iter().position(|byte| *byte == 0).unwrap_or(self.interface.len());
        core::str::from_utf8(&self.interface[..len]).unwrap_or_default()
    }
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// A tcx link on ingress (Linux 6.6 and later).
    Tcx = 1,
    /// A `cls_bpf` filter in direct-action mode on the ingress side of a clsact qdisc.
    ClsBpf = 2,
}

impl Hook {
    /// The hook that this number stands for.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Tcx),
            2 => Some(Self::ClsBpf),
            _ => None,
        }
    }

    /// `tcx` or `cls_bpf`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::ClsBpf => "cls_bpf",
        }
    }
}

/// Key of `PORT_POLICY` and `PORT_STATS`: a port of one protocol.
///
/// By hand, for bpftool: `06 00 90 1f` is TCP port 8080 (0x1f90, little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PortKey {
    /// IP protocol number: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Always 0.
    pub zero: u8,
    /// Host order.
    pub port: u16,
}

impl PortKey {
    /// The key of this port.
    #[inline(always)]
    pub const fn new(protocol: Protocol, port: u16) -> Self {
        let word = u32::from_le_bytes([protocol as u8, 0, 0, 0]) | (port as u32) << 16;
        // SAFETY: no padding, and every bit pattern is a value. (Little endian, as every machine that this runs
        // on.) Written as the word that the map's hash reads: a load that spans several stores waits until they
        // have left the store buffer.
        unsafe { transmute::<u32, Self>(word) }
    }

    /// Whether this is a port of TCP or UDP: the world may write any bytes into a map.
    pub const fn is_valid(self) -> bool {
        Protocol::from_number(self.protocol).is_some() && self.zero == 0 && self.port != 0
    }

    /// The port's index in `PORT_PACKETS`: the port itself for TCP, 65536 more for UDP.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.port as u32 | ((self.protocol == Protocol::Udp as u8) as u32) << 16
    }

    /// The port at this index of `PORT_PACKETS`.
    pub const fn at_index(index: u32) -> Self {
        let protocol = if index >> 16 == 0 { Protocol::Tcp } else { Protocol::Udp };
        Self::new(protocol, (index & 0xffff) as u16)
    }
}

/// Value of `PORT_POLICY` (hash): what the user wrote about a port, by where it was written.
///
/// Each writer has its own field, so that neither undoes the other; the command line is the stronger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortPolicy {
    /// A [`Policy`] written by `wsl-mirror exempt` (or by bpftool).
    pub cli: u8,
    /// A [`Policy`] written by `wsl-mirror load` from the configuration file.
    pub config: u8,
}

impl PortPolicy {
    /// The policy in force: the command line's, else the file's.
    #[inline(always)]
    pub const fn effective(self) -> Policy {
        match Policy::from_byte(self.cli) {
            Policy::Unset => Policy::from_byte(self.config),
            said => said,
        }
    }

    /// Whether nobody says anything about the port any more.
    pub const fn is_unset(self) -> bool {
        matches!(self.effective(), Policy::Unset)
    }
}

/// Value of `PORT_STATS` (per-CPU hash): what happened on a port. Packets towards the port only: replies
/// leave through the egress side of the interface, which this program does not see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortStats {
    /// Flows that were steered (their conntrack entry was made by us). Each is also one packet; the flows' other
    /// packets are counted in `PORT_PACKETS`.
    pub steered_flows: u64,
    /// Packets that passed untouched.
    pub passed_packets: u64,
    /// Packets that passed because one of our calls failed.
    pub failed_packets: u64,
}

/// Key of `FLOWS` (LRU hash): the client's side of a flow. The server's address is always 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The client's address, 127.x.y.z, in the order in which one writes it.
    pub client: [u8; 4],
    /// Host order.
    pub client_port: u16,
    /// Host order.
    pub server_port: u16,
    /// IP protocol number: 6 TCP, 17 UDP. As wide as it is so that there is nothing to pad.
    pub protocol: u32,
}

impl FlowKey {
    /// The key of this flow.
    #[inline(always)]
    pub const fn new(protocol: Protocol, client: [u8; 4], client_port: u16, server_port: u16) -> Self {
        let ports = client_port as u32 | (server_port as u32) << 16;
        // SAFETY: as for `PortKey`.
        unsafe { transmute::<[u32; 3], Self>([u32::from_ne_bytes(client), ports, protocol as u32]) }
    }
}

/// Value of `FLOWS`: who carries a flow and which way, for the packet that finds the flow's conntrack entry lost, and
/// for flows that are delivered by `lo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowState {
    /// A [`Carrier`].
    pub carrier: u32,
    /// 1: the flow is delivered by `lo`. 0: it takes the plain way.
    pub by_lo: u32,
    /// Of a flow within Linux: the sequence number of its first SYN.
    pub sequence: u32,
}

impl FlowState {
    /// A flow that this one carries.
    #[inline(always)]
    pub const fn new(carrier: Carrier, by_lo: bool) -> Self {
        Self { carrier: carrier as u32, by_lo: by_lo as u32, sequence: 0 }
    }

    /// A flow whose SYN has come by: of ours, or within Linux.
    #[inline(always)]
    pub const fn seen(is_ours: bool, sequence: u32, by_lo: bool) -> Self {
        let carrier = if is_ours { Carrier::Listener } else { Carrier::Linux };
        Self { sequence, ..Self::new(carrier, by_lo) }
    }
}

/// Value of `SOCKET_DELIVERY` (socket storage), of a listener: how its flows are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketDelivery {
    /// 1: by `lo`. A rule that drops what is "not on lo" was seen to eat SYNs to this listener.
    pub by_lo: u32,
}

/// Value of `PORT_DELIVERY` (array with an element for each port, as in `PORT_PACKETS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortDelivery {
    /// 1: flows to a listener on this port were delivered by `lo`, so each packet to it is looked at more closely.
    /// Written by the program, and never taken back: it decides nothing.
    pub seen: u32,
    /// A [`PortRule`]. Written by user space, which reads the rules.
    pub rule: u32,
}

/// What the rules say of a port, before conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum PortRule {
    /// One drops whatever does not come in on `lo`, from whichever interface: it is for what comes from outside, and
    /// new flows are delivered by `lo`.
    NotOnLo = 1,
    /// One drops what comes in on the interface that we are on, and not what comes in elsewhere: somebody has closed the
    /// port to Windows, and it stays closed. Nothing is delivered by `lo`.
    Closed = 2,
}

impl PortRule {
    /// The one that this number stands for; nothing for any other, as for 0.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::NotOnLo),
            2 => Some(Self::Closed),
            _ => None,
        }
    }

    /// `not_on_lo` or `closed`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotOnLo => "not_on_lo",
            Self::Closed => "closed",
        }
    }
}

/// Key of `FRAGMENTS` (LRU hash): what the fragments of a datagram to 127.0.0.1 have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// The sender's address, 127.x.y.z, in the order in which one writes it.
    pub client: [u8; 4],
    /// IPv4's identification.
    pub id: u16,
    /// IP protocol number: 6 TCP, 17 UDP.
    pub protocol: u16,
}

impl FragmentKey {
    /// The key of this datagram.
    #[inline(always)]
    pub const fn new(protocol: Protocol, client: [u8; 4], id: u16) -> Self {
        let rest = id as u32 | (protocol as u32) << 16;
        // SAFETY: as for `PortKey`.
        unsafe { transmute::<[u32; 2], Self>([u32::from_ne_bytes(client), rest]) }
    }
}

/// Who carries a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Carrier {
    /// It was steered when it began.
    Listener = 1,
    /// An engine, by DNAT. Only noted of UDP, whose datagrams do not tell whether their flow has just begun.
    Engine = 2,
    /// Nobody but the stack: a flow from Linux to Linux, to a listener that is steered. Noted in order to see whether
    /// it gets through.
    Linux = 3,
}

impl Carrier {
    /// The carrier that this number stands for.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Listener),
            2 => Some(Self::Engine),
            3 => Some(Self::Linux),
            _ => None,
        }
    }
}

/// Value of `SOCKET_OWNER` (socket storage) and key of `OWNERS` (hash): a process by its user and its name.
///
/// A socket carries the one that bound it last, or asked for its address (getsockname(2)) after that: a process that
/// is handed a listener, as docker-proxy is by dockerd from 28.0 on, does the latter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Owner {
    /// The real user id, as the initial user namespace has it; in `OWNERS` also [`Owner::ANY_UID`].
    pub uid: u32,
    /// The thread's name (`comm`), filled up with zeros; the kernel cuts names to 15 bytes.
    pub name: [u8; 16],
}

impl Owner {
    /// In a key of `OWNERS`: whatever the user. No user has this id (`INVALID_UID`).
    pub const ANY_UID: u32 = u32::MAX;

    /// The one of this name, which is cut to 15 bytes as the kernel does it.
    pub const fn new(name: &[u8], uid: u32) -> Self {
        let mut owner = Self { uid, name: [0; 16] };
        let mut at = 0;
        while at < name.len() && at < owner.name.len() - 1 {
            owner.name[at] = name[at];
            at += 1;
        }
        owner
    }

    /// The same name, whatever the user.
    #[must_use]
    #[inline(always)]
    pub const fn of_any_user(self) -> Self {
        Self { uid: Self::ANY_UID, ..self }
    }

    /// The name, without what is no UTF-8.
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        match core::str::from_utf8(&self.name[..len]) {
            Ok(name) => name,
            Err(error) => core::str::from_utf8(&self.name[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

/// Value of `OWNERS`: what ports get that such a process serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OwnerPolicy {
    /// A [`Policy`].
    pub policy: u32,
}

impl OwnerPolicy {
    /// The value that says this.
    pub const fn new(policy: Policy) -> Self {
        Self { policy: policy as u32 }
    }

    /// The policy that this number stands for.
    #[inline(always)]
    pub const fn policy(self) -> Policy {
        match self.policy {
            1 => Policy::Pass,
            2 => Policy::Steer,
            _ => Policy::Unset,
        }
    }
}

/// Who is steered without a word in the configuration: Docker's proxy, run by root. Whoever else may call a program
/// so is not believed.
pub const BUILT_IN_OWNERS: [(Owner, Policy); 1] = [(Owner::new(b"docker-proxy", 0), Policy::Steer)];

#[cfg(feature = "user")]
mod pod {
    use super::{
        FlowKey, FlowState, FragmentKey, Owner, OwnerPolicy, PortDelivery, PortKey, PortPolicy, PortStats,
        Settings, SocketDelivery, Verdicts,
    };

    // SAFETY: `repr(C)`, integers only, no padding, every bit pattern is a value.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortPolicy {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Owner {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OwnerPolicy {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketDelivery {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortDelivery {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FragmentKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Verdicts {}
}

/// What a packet got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Untouched, on to the next program.
    Pass,
    /// Untouched, on to the next program, because one of our own calls failed.
    Failed,
    /// Marked, with a conntrack entry that engines' DNAT rules leave alone.
    Steer,
}

impl Verdict {
    /// All, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Steer, Self::Pass, Self::Failed];

    /// `pass`, `failed` or `steer`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Failed => "failed",
            Self::Steer => "steer",
        }
    }
}

/// Defines [`Reason`] and [`Verdicts`] from one list, so that a counter cannot exist without a reason, nor
/// a reason without a name and a sentence.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:ident, $verdict:ident;)+) => {
        /// Why a packet got its verdict.
        #[expect(clippy::doc_markdown, reason = "the sentences are shown to people as they stand")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// All, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The reason of this number: its place in [`Self::ALL`].
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                if (number as usize) < Self::ALL.len() {
                    // SAFETY: the variants are numbered from 0 on, without a gap.
                    Some(unsafe { transmute::<u32, Self>(number) })
                } else {
                    None
                }
            }

            /// The counter's name: what `bpftool map dump` shows.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($name),)+ }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// The verdict that it is a reason for.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }
        }

        /// Value of `VERDICTS` (per-CPU array, one element): packets by reason.
        #[expect(clippy::doc_markdown, reason = "the sentences are shown to people as they stand")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct Verdicts {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Verdicts {
            /// The counter of this reason.
            #[inline(always)]
            pub fn counter(&mut self, reason: Reason) -> &mut u64 {
                match reason { $(Reason::$variant => &mut self.$name,)+ }
            }

            /// The counter of this reason.
            pub const fn get(&self, reason: Reason) -> u64 {
                match reason { $(Reason::$variant => self.$name,)+ }
            }
        }
    };
}

reasons! {
    /// the flow began and was steered
    New => steer_new, Steer;
    /// a flow began on the addresses of a finished one, whose conntrack entry was replaced
    Reused => steer_reused, Steer;
    /// an engine's DNAT had caught the flow before it was established; it was taken back
    Healed => steer_healed, Steer;
    /// an established flow had lost its conntrack entry (conntrack -F); it got a new one
    PickedUp => steer_picked_up, Steer;
    /// a packet of a flow that was steered
    Established => steer_established, Steer;
    /// the flow was steered, but there was no room to remember that: should its entry get lost, it is judged anew
    Unremembered => steer_unremembered, Steer;
    /// a flow's first SYN had been eaten by a rule for what is not on lo: from now on the listener's flows go by lo
    Learned => steer_learned, Steer;
    /// a flow within Linux that such a rule stands against, delivered by lo; its conntrack entry is left as it is
    Local => steer_local, Steer;
    /// a later fragment of a datagram that is delivered by lo
    Fragment => steer_fragment, Steer;

    /// not IPv4 (ARP, IPv6, …)
    NotIpv4 => pass_not_ipv4, Pass;
    /// carries a VLAN tag
    Vlan => pass_vlan, Pass;
    /// the frame is addressed to somebody else
    NotToUs => pass_not_to_us, Pass;
    /// shorter than its headers say
    Truncated => pass_truncated, Pass;
    /// IP or transport header with impossible values
    BadHeader => pass_bad_header, Pass;
    /// neither TCP nor UDP
    NotTcpUdp => pass_not_tcp_udp, Pass;
    /// not from 127.0.0.0/8 to 127.0.0.1
    NotLoopback => pass_not_loopback, Pass;
    /// a later fragment: it carries no ports and goes where its first fragment goes
    LaterFragment => pass_later_fragment, Pass;
    /// source or destination port 0
    PortZero => pass_port_zero, Pass;
    /// a reply of a flow that Linux opened
    Reply => pass_reply, Pass;
    /// a flow that began without us and needs no help: Linux to Linux, or older than wsl-mirror
    NotOurs => pass_not_ours, Pass;
    /// an engine carries the flow by DNAT, or did before its conntrack entry was lost
    EngineNat => pass_engine_nat, Pass;
    /// the port is exempt
    Exempt => pass_exempt, Pass;
    /// whoever serves the port is to be left alone (OWNERS)
    OwnerPolicy => pass_owner_policy, Pass;
    /// whoever serves the port is nobody that is steered (OWNERS has no word of it, and the default is to pass)
    DefaultPolicy => pass_default_policy, Pass;
    /// nobody listens on the port
    NoListener => pass_no_listener, Pass;
    /// a segment of an unknown connection, and no local socket belongs to it
    NoSocket => pass_no_socket, Pass;
    /// a segment of an unknown connection that cannot begin one (RST, FIN, SYN+ACK, …)
    Stray => pass_stray, Pass;

    /// nobody has written SETTINGS yet
    NoSettings => failed_no_settings, Failed;
    /// bpf_skb_pull_data failed: the headers could not be made readable
    PullFailed => failed_pull, Failed;
    /// bpf_skb_ct_lookup failed with something else than "not found"
    LookupFailed => failed_lookup, Failed;
    /// a finished or caught conntrack entry could not be taken away
    ExpireFailed => failed_expire, Failed;
    /// bpf_skb_ct_alloc failed: the conntrack table is full or memory is short
    AllocFailed => failed_alloc, Failed;
    /// bpf_ct_set_nat_info failed
    NatFailed => failed_nat, Failed;
    /// bpf_ct_insert_entry failed: another CPU was first, or the hash chain is too long
    InsertFailed => failed_insert, Failed;
    /// bpf_skb_store_bytes failed: the packet could not be delivered by lo, and took the plain way
    DeliverFailed => failed_deliver, Failed;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_named_after_its_verdict() {
        let mut all = Verdicts::default();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_number(*reason as u32), Some(*reason));
            *all.counter(*reason) += index as u64 + 1;
            assert!(
                reason.name().starts_with(reason.verdict().name()),
                "{} is a reason for {}",
                reason.name(),
                reason.verdict().name()
            );
        }
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(all.get(*reason), index as u64 + 1, "{} shares a counter", reason.name());
        }
        assert_eq!(size_of::<Verdicts>(), Reason::ALL.len() * 8);
    }

    #[test]
    fn what_the_command_line_says_is_stronger_than_the_file() {
        let policy = |cli, config| PortPolicy { cli, config }.effective();
        assert_eq!(policy(0, 0), Policy::Unset);
        assert_eq!(policy(0, 1), Policy::Pass);
        assert_eq!(policy(2, 1), Policy::Steer);
        assert_eq!(policy(1, 2), Policy::Pass);
    }

    #[test]
    fn a_byte_that_is_no_policy_says_nothing() {
        for byte in 3..=u8::MAX {
            assert_eq!(PortPolicy { cli: byte, config: 1 }.effective(), Policy::Pass);
            assert_eq!(PortPolicy { cli: byte, config: byte }.effective(), Policy::Unset);
        }
    }

    #[test]
    fn an_owner_has_the_name_that_the_kernel_gives_it() {
        assert_eq!(Owner::new(b"docker-proxy", 0).name, *b"docker-proxy\0\0\0\0");
        let cut = Owner::new(b"a-name-of-17-bytes", 7);
        assert_eq!((cut.name(), cut.name[15], cut.uid), ("a-name-of-17-by", 0, 7));
        assert_eq!(cut.of_any_user(), Owner::new(b"a-name-of-17-bytes", Owner::ANY_UID));
        assert_eq!(Owner { uid: 0, name: [0xff; 16] }.name(), "");
    }

    #[test]
    fn a_number_that_is_no_policy_says_nothing_about_an_owner() {
        for policy in [Policy::Unset, Policy::Pass, Policy::Steer] {
            assert_eq!(OwnerPolicy::new(policy).policy(), policy);
        }
        assert_eq!(OwnerPolicy { policy: 0x102 }.policy(), Policy::Unset);
    }

    #[test]
    fn every_port_has_its_own_place() {
        for protocol in Protocol::ALL {
            for port in [0, 1, 80, 65_535] {
                let key = PortKey::new(protocol, port);
                assert!((key.index() as usize) < PORTS);
                assert_eq!(PortKey::at_index(key.index()), key);
            }
        }
    }

    #[test]
    fn layouts_have_no_padding_and_the_documented_bytes() {
        assert_eq!(size_of::<PortKey>(), 4);
        assert_eq!(size_of::<PortPolicy>(), 2);
        assert_eq!(size_of::<FlowKey>(), 12);
        assert_eq!(size_of::<Settings>(), 44);
        assert_eq!(size_of::<FlowState>(), 12);
        assert_eq!(size_of::<FragmentKey>(), 8);
        assert_eq!(size_of::<Owner>(), 20);
        assert_eq!(size_of::<OwnerPolicy>(), 4);
        let flow = FlowKey::new(Protocol::Udp, [127, 0, 0, 2], 50_000, 53);
        let fields = FlowKey { client: [127, 0, 0, 2], client_port: 50_000, server_port: 53, protocol: 17 };
        assert_eq!(flow, fields);
        let fragment = FragmentKey::new(Protocol::Udp, [127, 0, 0, 2], 7);
        assert_eq!(fragment, FragmentKey { client: [127, 0, 0, 2], id: 7, protocol: 17 });
        let PortKey { protocol, zero, port } = PortKey::new(Protocol::Tcp, 8080);
        assert_eq!((protocol, zero, port.to_le_bytes()), (0x06, 0x00, [0x90, 0x1f]));
    }
}
