//! The kernel around one packet: [`Ingress`].

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use wsl_mirror_core::abi::{FragmentKey, Policy, Reason, Settings};
use wsl_mirror_core::fragments::Datagrams;
use wsl_mirror_core::packet::{LOCALHOST, Packet};
use wsl_mirror_core::verdict::{Conntrack, Destination, Kernel, Listener};

use crate::counters::{port_key, was_carried};
use crate::maps::{FRAGMENTS, PORT_POLICY};
use crate::skb::Skb;
use crate::{conntrack, sockets};

/// The kernel around one packet, for [`decide`](wsl_mirror_core::verdict::decide) and
/// [`fragments`](wsl_mirror_core::fragments).
pub struct Ingress<'a> {
    pub skb: &'a mut Skb,
    pub settings: &'a Settings,
}

impl Ingress<'_> {
    #[inline(always)]
    const fn address(&self, destination: Destination) -> [u8; 4] {
        match destination {
            Destination::Own => LOCALHOST,
            Destination::Alias => self.settings.alias,
        }
    }
}

impl Kernel for Ingress<'_> {
    #[inline(always)]
    fn was_carried(&mut self, packet: &Packet) -> bool {
        was_carried(packet)
    }

    #[inline(always)]
    fn conntrack(&mut self, packet: &Packet, destination: Destination) -> Conntrack {
        conntrack::find(self.skb, packet, self.address(destination))
    }

    #[inline(always)]
    fn port_policy(&mut self, packet: &Packet) -> Policy {
        let Some(policy) = PORT_POLICY.get_ptr(port_key(packet)) else { return Policy::Unset };
        // SAFETY: the element stays readable until the program ends (RCU); each field is one byte.
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
    fn has_connection(&mut self, packet: &Packet) -> bool {
        sockets::has_connection(self.skb, packet)
    }

    #[inline(always)]
    fn expire(&mut self, packet: &Packet, destination: Destination) -> Result<(), ()> {
        conntrack::expire(self.skb, packet, self.address(destination), destination)
    }

    #[inline(always)]
    fn create(&mut self, packet: &Packet, destination: Destination) -> Result<(), Reason> {
        conntrack::create(self.skb, packet, self.address(destination))
    }

    #[inline(always)]
    fn opaque(&self, number: u64) -> u64 {
        self.skb.opaque(number)
    }
}

impl Datagrams for Ingress<'_> {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        // SAFETY: no pointers are handed over.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn first_carried_at(&mut self, datagram: FragmentKey) -> Option<u64> {
        // SAFETY: the element stays readable until the program ends (RCU), and an aligned u64 is read in one piece.
        FRAGMENTS.get_ptr(datagram).map(|then| unsafe { *then })
    }

    #[inline(always)]
    fn remember(&mut self, datagram: FragmentKey, now: u64) {
        // An LRU map has room. If the insertion fails all the same, the datagram is lost, as one of a lossy network.
        let _ = FRAGMENTS.insert(datagram, now, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn forget(&mut self, datagram: FragmentKey) {
        // Most identifications have no record.
        let _ = FRAGMENTS.remove(datagram);
    }
}
