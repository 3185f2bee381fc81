//! The kernel around one packet: [`Ingress`].

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use wsl_mirror_core::abi::{Carrier, FlowState, FragmentKey, Policy, Reason, Settings};
use wsl_mirror_core::fragments::Datagrams;
use wsl_mirror_core::packet::Packet;
use wsl_mirror_core::verdict::{Conntrack, Kernel, KnownFlow, Listener, Way};

use crate::counters::port_key;
use crate::maps::{FLOWS, FRAGMENTS, PORT_POLICY};
use crate::skb::Skb;
use crate::{conntrack, delivery, sockets};

/// The kernel around one packet, for [`decide`](wsl_mirror_core::verdict::decide) and
/// [`fragments`](wsl_mirror_core::fragments).
pub struct Ingress<'a> {
    pub skb: &'a mut Skb,
    pub settings: &'a Settings,
}

impl Kernel for Ingress<'_> {
    #[inline(always)]
    fn conntrack(&mut self, packet: &Packet) -> Conntrack {
        conntrack::find(self.skb, packet)
    }

    #[inline(always)]
    fn known_flow(&mut self, packet: &Packet) -> KnownFlow {
        let Some(flow) = FLOWS.get_ptr(packet.flow()) else { return KnownFlow::NONE };
        // SAFETY: the element stays readable until the program ends (RCU). A concurrent writer may change it: an
        // aligned u32 is read in one piece, and no field depends on another.
        let flow = unsafe { &*flow };
        KnownFlow {
            carrier: Carrier::from_number(flow.carrier),
            by_lo: flow.by_lo == 1,
            sequence: flow.sequence,
        }
    }

    #[inline(always)]
    fn port_policy(&mut self, packet: &Packet) -> Policy {
        let Some(policy) = PORT_POLICY.get_ptr(port_key(packet)) else { return Policy::Unset };
        // SAFETY: as above; each field is one byte.
        unsafe { *policy }.effective()
    }

    #[inline(always)]
    fn default_policy(&mut self) -> Policy {
        Policy::from_byte(self.settings.default_policy as u8)
    }

    #[inline(always)]
    fn listener(&mut self, packet: &Packet) -> Option<Listener> {
        sockets::listener(self.skb, packet)
    }

    #[inline(always)]
    fn way(&mut self, packet: &Packet) -> Way {
        delivery::way(self.settings, packet)
    }

    #[inline(always)]
    fn has_connection(&mut self, packet: &Packet) -> bool {
        sockets::has_connection(self.skb, packet)
    }

    #[inline(always)]
    fn expire(&mut self, packet: &Packet) -> Result<(), ()> {
        conntrack::expire(self.skb, packet)
    }

    #[inline(always)]
    fn create(&mut self, packet: &Packet) -> Result<(), Reason> {
        conntrack::create(self.skb, packet)
    }

    #[inline(always)]
    fn remember(&mut self, packet: &Packet, flow: FlowState) -> Result<(), ()> {
        if flow.by_lo == 1 {
            delivery::set_seen(packet);
        }
        FLOWS.insert(packet.flow(), flow, u64::from(BPF_ANY)).map_err(|_| ())
    }

    #[inline(always)]
    fn learn(&mut self, packet: &Packet) {
        sockets::learn(self.skb, packet);
    }

    #[inline(always)]
    fn opaque(&self, number: u64) -> u64 {
        self.skb.opaque(number)
    }

    #[inline(always)]
    fn forget(&mut self, packet: &Packet) {
        // Most flows have no record.
        let _ = FLOWS.remove(packet.flow());
    }
}

impl Datagrams for Ingress<'_> {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        // SAFETY: no pointers are handed over.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn first_delivered_at(&mut self, datagram: FragmentKey) -> Option<u64> {
        if self.settings.lo_ifindex == 0 {
            return None;
        }
        // SAFETY: the element stays readable until the program ends (RCU), and an aligned u64 is read in one piece.
        FRAGMENTS.get_ptr(datagram).map(|then| unsafe { *then })
    }

    #[inline(always)]
    fn remember(&mut self, datagram: FragmentKey, now: u64) {
        // No room: then the others take the plain way, and the datagram is judged by where the last one came in.
        let _ = FRAGMENTS.insert(datagram, now, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn forget(&mut self, datagram: FragmentKey) {
        if self.settings.lo_ifindex != 0 {
            let _ = FRAGMENTS.remove(datagram);
        }
    }
}
