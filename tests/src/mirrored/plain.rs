//! The yardstick of what mirrored mode costs Linux' own traffic to 127.0.0.1.

use anyhow::{Context as _, Result};

use super::{
    Lab,
    guest::{wsl_output_rules, wsl_postrouting_rules},
};
use crate::Namespace;

impl Lab {
    /// A machine that has WSL's nftables rules and local ports, and none of WSL's routing: what its programs send to
    /// 127.0.0.1 stays on `lo`. Conntrack and NAT look at those packets as they do in the guest.
    pub fn plain_lo(&self) -> Result<Namespace> {
        let make = || -> Result<Namespace> {
            let plain = Namespace::new("machine without WSL's routing", None)?;
            // WSL's rules name eth0 by its index.
            plain.ip_batch("link set lo up\nlink add eth0 type veth peer name wire0\n")?;
            let network = self.network();
            plain.nft(&(wsl_output_rules() + &wsl_postrouting_rules(&network)))?;
            let ports = format!("{} {}", network.leased.start(), network.leased.end());
            plain.set_sysctls([("net/ipv4/ip_local_port_range", ports.as_str())])?;
            Ok(plain)
        };
        make().context("making a machine with a plain lo")
    }
}
