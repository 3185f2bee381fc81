//! The kernel around one packet: [`Ingress`].

use core::mem;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use wsl_mirror_core::abi::{
    CarriedDatagram, DirectFlow, FragmentKey, Path, Policy, PortPackets, PortPolicy, Protocol, Reason,
    Settings, Target,
};
use wsl_mirror_core::fragments::Datagrams;
use wsl_mirror_core::packet::{LOCALHOST, Packet, Role};
use wsl_mirror_core::verdict::{Conntrack, End, Kernel, Listener, TupleKind};

use crate::conntrack::Addresses;
use crate::counters::port_key;
use crate::maps::{FRAGMENTS, PORT_POLICY};
use crate::skb::Skb;
use crate::{conntrack, counters, routes, sockets};

/// The kernel around one packet, for [`decide`](wsl_mirror_core::verdict::decide) and
/// [`fragments`](wsl_mirror_core::fragments).
pub struct Ingress<'a> {
    pub skb: &'a mut Skb,
    pub settings: &'a Settings,
}

/// The same packet, its enums hidden from the verifier: else the verifier follows all later code once for each way
/// through the parser.
#[inline(always)]
pub fn hide(skb: &Skb, packet: &Packet) -> Packet {
    let id = u64::from(packet.first_fragment.unwrap_or_default());
    let is_fragment = u64::from(packet.first_fragment.is_some());
    let same = skb.opaque(packet.role as u64 | (packet.protocol as u64) << 8 | is_fragment << 16 | id << 32);
    Packet {
        // SAFETY: the same number as before.
        role: unsafe { mem::transmute::<u8, Role>(same as u8) },
        // SAFETY: as above.
        protocol: unsafe { mem::transmute::<u8, Protocol>((same >> 8) as u8) },
        first_fragment: (same >> 16 & 1 != 0).then_some((same >> 32) as u16),
        ..*packet
    }
}

impl Ingress<'_> {
    #[inline(always)]
    const fn addresses(&self, packet: &Packet, kind: TupleKind) -> Addresses {
        match kind {
            TupleKind::Own => Addresses { source: packet.client, destination: LOCALHOST },
            TupleKind::Steered => Addresses { source: packet.client, destination: self.settings.alias },
            TupleKind::Direct => {
                Addresses { source: self.settings.source_alias, destination: self.settings.alias }
            }
        }
    }
}

impl Kernel for Ingress<'_> {
    #[inline(always)]
    fn carried(&mut self, packet: &Packet) -> PortPackets {
        counters::carried(packet)
    }

    #[inline(always)]
    fn conntrack(&mut self, packet: &Packet, kind: TupleKind) -> Conntrack {
        conntrack::find(self.skb, packet, self.addresses(packet, kind))
    }

    #[inline(always)]
    fn port_policy(&mut self, packet: &Packet) -> PortPolicy {
        let Some(policy) = PORT_POLICY.get_ptr(port_key(packet)) else { return PortPolicy::default() };
        // SAFETY: the element stays readable until the program ends (RCU); each field is one byte.
        unsafe { *policy }
    }

    #[inline(always)]
    fn default_policy(&mut self) -> Policy {
        Policy::from_byte(self.settings.default_policy as u8)
    }

    #[inline(always)]
    fn global_path(&mut self) -> Path {
        Path::from_byte(self.settings.path as u8)
    }

    #[inline(always)]
    fn listener(&mut self, packet: &Packet) -> Listener {
        sockets::listener(self.skb, packet)
    }

    #[inline(always)]
    fn has_connection(&mut self, packet: &Packet) -> bool {
        sockets::has_connection(self.skb, packet)
    }

    #[inline(always)]
    fn has_sender(&mut self, packet: &Packet) -> bool {
        sockets::has_sender(self.skb, packet)
    }

    #[inline(always)]
    fn is_reachable(&mut self, packet: &Packet, target: &Target) -> bool {
        routes::is_reachable(self.skb, packet, target, self.settings.source_alias)
    }

    #[inline(always)]
    fn now(&mut self) -> u64 {
        // SAFETY: no pointers are handed over.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn note_unanswered(&mut self, packet: &Packet) {
        sockets::note_unanswered(self.skb, packet);
    }

    #[inline(always)]
    fn expire(&mut self, packet: &Packet, kind: TupleKind, target: End) -> Result<(), ()> {
        conntrack::expire(self.skb, packet, self.addresses(packet, kind), kind, target)
    }

    #[inline(always)]
    fn create(&mut self, packet: &Packet, kind: TupleKind) -> Result<(), Reason> {
        let to_listener =
            DirectFlow { address: LOCALHOST, source: [0; 4], port: packet.server_port, source_port: 0 };
        conntrack::create(self.skb, packet, self.addresses(packet, kind), &to_listener)
    }

    #[inline(always)]
    fn create_direct(&mut self, packet: &Packet, flow: DirectFlow) -> Result<(), Reason> {
        conntrack::create(self.skb, packet, self.addresses(packet, TupleKind::Direct), &flow)
    }

    #[inline(always)]
    fn recall(&mut self, packet: &Packet) -> Option<DirectFlow> {
        conntrack::recall(packet)
    }

    #[inline(always)]
    fn opaque(&self, number: u64) -> u64 {
        self.skb.opaque(number)
    }

    #[inline(always)]
    fn hidden(&self, packet: &Packet) -> Packet {
        hide(self.skb, packet)
    }

    #[inline(always)]
    fn hidden_listener(&self, listener: &Listener) -> Listener {
        let Listener { exists, owner, has_target, target } = *listener;
        let known = owner as u64 | u64::from(exists) << 8 | u64::from(has_target) << 16;
        let same = self.skb.opaque(known);
        Listener {
            exists: same >> 8 & 1 != 0,
            // SAFETY: the same number as before.
            owner: unsafe { mem::transmute::<u8, Policy>(same as u8) },
            has_target: same >> 16 & 1 != 0,
            target,
        }
    }
}

impl Datagrams for Ingress<'_> {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        // SAFETY: no pointers are handed over.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn record(&mut self, datagram: FragmentKey) -> Option<CarriedDatagram> {
        // SAFETY: the element stays readable until the program ends (RCU), and each aligned u64 is read in one piece.
        FRAGMENTS.get_ptr(datagram).map(|carried| unsafe { *carried })
    }

    #[inline(always)]
    fn remember(&mut self, datagram: FragmentKey, carried: CarriedDatagram) {
        // An LRU map has room. If the insertion fails all the same, the datagram is lost, as one of a lossy network.
        let _ = FRAGMENTS.insert(datagram, carried, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn forget(&mut self, datagram: FragmentKey) {
        // Most identifications have no record.
        let _ = FRAGMENTS.remove(datagram);
    }
}
