//! A network made anew, and one that is half made.
//!
//! A restart of Windows' Host Network Service and a VPN change make the network anew: `loopback0` comes back under
//! another index, and Windows leases another block of ports (WSL's sources, `mirrored-mode.md`). Windows forgets the
//! guest's binds. Engines keep their sockets, of which Windows hears again only when they bind again. The gateway of
//! table 127 is another one in this model, so that a test notices a remembered one.

use std::{net::Ipv4Addr, ops::RangeInclusive, path::Path};

use anyhow::{Context as _, Result};

use super::{Lab, addresses::Network, half_made::HalfMade};

impl Lab {
    /// The gateway of table 127.
    pub fn gateway(&self) -> Ipv4Addr {
        self.network().gateway
    }

    /// The address that guest and Windows share now; [`crate::LAN_ADDRESS`] at first.
    pub fn lan_address(&self) -> Ipv4Addr {
        self.network().lan
    }

    /// The block that Windows has leased to the guest now; [`crate::GUEST_EPHEMERAL`] at first.
    pub fn leased(&self) -> RangeInclusive<u16> {
        self.network().leased
    }

    pub(super) fn network(&self) -> Network {
        self.windows_side().network()
    }

    /// Makes the network anew: both NICs, all addresses and the leased block are others. Windows forgets every bind
    /// and every flow. A neighbour ([`Lab::add_neighbour`]) stays behind in the old network.
    pub fn make_network_anew(&self) -> Result<()> {
        let old = self.network();
        let make = || -> Result<()> {
            for nic in ["loopback0", "eth0"] {
                // A network that is half made may have none.
                if self.has_nic(nic) {
                    self.guest().ip_batch(&format!("link del {nic}\n"))?;
                }
            }
            self.windows().ip_batch(&format!("addr del {}/32 dev lo\n", old.lan))?;
            self.windows_side().set_network(old.another())?;
            self.forget_binds_and_flows()?;
            self.add_eth0()?;
            // WSL's rules name eth0 by its index.
            self.lease_block_anew()?;
            self.add_loopback0()
        };
        make().context("making the network anew")
    }

    /// Windows leases another block of ports to the guest, and nothing else changes.
    pub fn lease_another_block(&self) -> Result<()> {
        self.windows_side().set_network(self.network().with_another_block())?;
        self.lease_block_anew().context("leasing another block of ports")
    }

    /// Takes a part of the network away.
    pub fn half_make_network(&self, missing: HalfMade) -> Result<()> {
        let lines = match missing {
            HalfMade::NoLoopback0 => "link del loopback0\n".to_owned(),
            // The kernel removes the routes by a NIC that goes down (`fib_disable_ip()`).
            HalfMade::Eth0Down => "link set eth0 down\n".to_owned(),
            HalfMade::NoTable127 => "route flush table 127\n".to_owned(),
            HalfMade::NoNeighbour => format!("neigh del {} dev loopback0\n", self.gateway()),
        };
        self.guest().ip_batch(&lines).with_context(|| format!("making the network without its {missing:?}"))
    }

    /// Gives a part back that was taken away.
    pub fn complete_network(&self, missing: HalfMade) -> Result<()> {
        match missing {
            HalfMade::NoLoopback0 => self.add_loopback0(),
            HalfMade::Eth0Down => self.set_up_guest_eth0(),
            HalfMade::NoTable127 | HalfMade::NoNeighbour => self.set_up_guest_loopback0(),
        }
        .with_context(|| format!("completing a network without its {missing:?}"))
    }

    fn has_nic(&self, name: &str) -> bool {
        self.guest().enter(|| Path::new("/sys/class/net").join(name).exists())
    }
}
