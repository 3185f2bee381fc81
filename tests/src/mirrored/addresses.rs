//! Addresses and ports of guest and Windows.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
};

pub use wsl_mirror_windows::{NEIGHBOUR_MAC, REFLECTION_MAC};

/// The link-layer address of the guest's `loopback0`, with Hyper-V's prefix.
pub const GUEST_MAC: [u8; 6] = [0x00, 0x15, 0x5d, 0x17, 0x96, 0x5a];
/// What Windows answers to: the link-layer address of [`Gateway`].
pub const WINDOWS_MAC: [u8; 6] = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55];
/// The address that guest and Windows share on the LAN.
pub const LAN_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 10);
/// The guest's local ports: a block leased from Windows, which sends them to the guest.
pub const GUEST_EPHEMERAL: RangeInclusive<u16> = 44_620..=48_715;

/// The link-layer address of the guest's `eth0`, a NIC of Windows.
pub const ETH0_MAC: [u8; 6] = [0x7c, 0x8a, 0xe1, 0xc3, 0xe8, 0x64];

/// 127.0.0.1 with that port.
pub fn loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// What the guest has of a mirrored network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    /// The gateway of table 127.
    pub(crate) gateway: Ipv4Addr,
    /// The address that guest and Windows share, in a /24.
    pub(crate) lan: Ipv4Addr,
    /// The block of ports that Windows has leased to the guest.
    pub(crate) leased: RangeInclusive<u16>,
}

impl Network {
    /// A lab's first network.
    pub(crate) fn first(gateway: Ipv4Addr, leased: RangeInclusive<u16>) -> Self {
        Self { gateway, lan: LAN_ADDRESS, leased }
    }

    /// A network that shares no address and no leased port with this one.
    pub(super) fn another(&self) -> Self {
        let [a, b, c, host] = self.gateway.octets();
        // From 1 to 254.
        let gateway = Ipv4Addr::new(a, b, c, host % 254 + 1);
        let lan = if self.lan == LAN_ADDRESS { Ipv4Addr::new(192, 168, 60, 20) } else { LAN_ADDRESS };
        Self { gateway, lan, ..self.with_another_block() }
    }

    /// The same network with a block of ports that shares none with this one's.
    pub(super) fn with_another_block(&self) -> Self {
        let leased = if self.leased == GUEST_EPHEMERAL { 36_000..=40_095 } else { GUEST_EPHEMERAL };
        Self { leased, ..self.clone() }
    }

    /// The router of the LAN.
    pub(super) fn router(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.lan.octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// The LAN, as `ip` has it.
    pub(super) fn subnet(&self) -> String {
        let [a, b, c, _] = self.lan.octets();
        format!("{a}.{b}.{c}.0/24")
    }
}

pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_made_anew_shares_nothing_with_the_old_one() {
        let mut network = Network::first(Ipv4Addr::new(169, 254, 73, 249), GUEST_EPHEMERAL);
        for _ in 0..10 {
            let next = network.another();
            assert_ne!(next.gateway, network.gateway);
            assert_ne!(next.subnet(), network.subnet());
            assert!(next.leased.end() < network.leased.start() || network.leased.end() < next.leased.start());
            assert_eq!(next.leased.len(), 4096);
            network = next;
        }
    }

    #[test]
    fn the_router_has_the_first_address_of_the_lan() {
        let network = Network::first(Ipv4Addr::LOCALHOST, GUEST_EPHEMERAL);
        assert_eq!(network.router(), Ipv4Addr::new(192, 168, 50, 1));
        assert_eq!(network.subnet(), "192.168.50.0/24");
    }
}
