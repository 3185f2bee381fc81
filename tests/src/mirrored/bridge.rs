//! A bridge like `docker0` without an engine: its containers are namespaces of which tests have everything in hand.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};

use super::{Lab, mac_text};
use crate::Namespace;

/// The bridge, in the guest.
pub const BRIDGE: &str = "lab-bridge";
/// The bridge's link-layer address.
pub const BRIDGE_MAC: [u8; 6] = [0x02, 0x42, 0xac, 0x1e, 0x00, 0x01];
/// The bridge's address: the gateway of its containers.
const GATEWAY: &str = "172.30.0.1";

impl Lab {
    /// Makes [`BRIDGE`] and lets the guest forward; at most once.
    pub fn add_bridge(&self) -> Result<()> {
        let mac = mac_text(BRIDGE_MAC);
        let lines = format!(
            "link add {BRIDGE} address {mac} type bridge\n\
             addr add {GATEWAY}/24 dev {BRIDGE}\n\
             link set {BRIDGE} up\n"
        );
        self.guest().ip_batch(&lines).context("adding a bridge")?;
        self.guest().set_sysctls([("net/ipv4/ip_forward", "1")])
    }

    /// Adds a container to [`BRIDGE`]. Its `eth0` has the address 172.30.0.`number`.
    pub fn add_bare_container(&self, number: u8) -> Result<Namespace> {
        let container = Namespace::new("container", None)?;
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), container.netns_fd().as_raw_fd());
        self.guest().ip_batch(&format!(
            "link add lab-veth{number} type veth peer name eth0 netns {namespace}\n\
             link set lab-veth{number} master {BRIDGE} up\n"
        ))?;
        container.ip_batch(&format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add 172.30.0.{number}/24 dev eth0\n\
             route add default via {GATEWAY}\n"
        ))?;
        Ok(container)
    }
}
