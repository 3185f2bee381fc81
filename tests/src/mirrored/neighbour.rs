//! A neighbour on the LAN: its own namespace, at the wire of Windows' NIC that the guest's `eth0` mirrors.

use std::{net::Ipv4Addr, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use wsl_mirror_windows::Wire;

use super::{ETH0_MAC, LAN_ADDRESS, Lab, NEIGHBOUR_MAC, mac_text};
use crate::{Namespace, raw};

/// The neighbour's address.
pub const NEIGHBOUR_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 20);
/// The neighbour's NIC, in its namespace.
pub const NEIGHBOUR_NIC: &str = "lan0";

impl Lab {
    /// Adds a neighbour on the LAN; at most one. Its NIC is [`NEIGHBOUR_NIC`].
    pub fn add_neighbour(&self) -> Result<Namespace> {
        self.make_neighbour().context("adding a neighbour on the LAN")
    }

    fn make_neighbour(&self) -> Result<Namespace> {
        let neighbour = Namespace::new("neighbour", None)?;
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), neighbour.netns_fd().as_raw_fd());
        let (shared, own) = (mac_text(ETH0_MAC), mac_text(NEIGHBOUR_MAC));
        self.windows.ip_batch(&format!(
            "link add winnic0 address {shared} mtu 1500 type veth \
             peer name {NEIGHBOUR_NIC} netns {namespace} address {own}\n\
             link set winnic0 up\n\
             rule add pref 0 iif winnic0 lookup local\n\
             route add {NEIGHBOUR_ADDRESS}/32 dev winnic0 src {LAN_ADDRESS}\n\
             neigh add {NEIGHBOUR_ADDRESS} lladdr {own} nud permanent dev winnic0\n",
        ))?;
        let index = |nic| -> Result<u32> {
            Ok(self.windows.enter(|| raw::interface_index(nic)).map(u32::try_from)??)
        };
        let wire = Wire { lan_nic: index("winlan0")?, wire_nic: index("winnic0")? };
        self.windows_side.attach_wire("winnic0", wire)?;
        neighbour.ip_batch(&format!(
            "link set lo up\n\
             link set {NEIGHBOUR_NIC} up\n\
             addr add {NEIGHBOUR_ADDRESS}/24 dev {NEIGHBOUR_NIC}\n\
             neigh add {LAN_ADDRESS} lladdr {shared} nud permanent dev {NEIGHBOUR_NIC}\n",
        ))?;
        Ok(neighbour)
    }
}
