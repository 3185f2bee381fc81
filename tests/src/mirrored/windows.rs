//! The network of the Windows stand-in: its NICs, addresses and routes.
//!
//! All of it is the model's; what the guest sees of it was read or reported (`mirrored-mode.md`).
//!
//! What Windows sends to 127.0.0.1, or to the address that it shares with the guest, leaves by a NIC. There the
//! programs of [`crate::windows`] decide whether it is for the guest.

use std::fmt::Write as _;

use anyhow::Result;

use super::{ETH0_MAC, GUEST_MAC, Lab, mac_text};

/// Stands for the guest in Windows' neighbour tables; never seen on the wire.
const GUEST_NEIGHBOUR: &str = "169.254.1.1";

impl Lab {
    pub(super) fn set_up_windows(&self) -> Result<()> {
        self.windows.set_sysctls([
            // Windows' dynamic range is from 49152 on by default (`mirrored-mode.md`).
            ("net/ipv4/ip_local_port_range", "49152 65535"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        let mut lines = String::from("link set lo up\nrule del pref 0 lookup local\n");
        for nic in ["winlo0", "winlan0"] {
            writeln!(lines, "rule add pref 0 iif {nic} lookup local")?;
        }
        for protocol in ["tcp", "udp"] {
            writeln!(lines, "rule add pref 1 ipproto {protocol} lookup 127")?;
        }
        lines += "rule add pref 2 lookup local\n";
        lines += &self.windows_winlan0()?;
        if self.options.loopback0 {
            lines += &self.windows_loopback0()?;
        }
        self.windows_side.attach_ipv6("lo")?;
        self.windows_side.attach("winlan0")?;
        if self.options.loopback0 {
            self.windows_side.attach("winlo0")?;
        }
        self.windows.ip_batch(&lines)
    }

    /// Windows' end of `eth0`.
    pub(super) fn set_up_windows_winlan0(&self) -> Result<()> {
        self.windows_side.attach("winlan0")?;
        self.windows.ip_batch(&self.windows_winlan0()?)
    }

    /// Its sysctls, at once, and the lines for `ip` that are to follow.
    fn windows_winlan0(&self) -> Result<String> {
        self.windows.set_sysctls([
            ("net/ipv4/conf/winlan0/accept_local", "1"),
            ("net/ipv4/conf/winlan0/route_localnet", "1"),
            ("net/ipv4/conf/winlan0/rp_filter", "0"),
        ])?;
        let (lan, mac) = (self.network().lan, mac_text(ETH0_MAC));
        Ok(format!(
            "link set winlan0 up\n\
             addr add {lan}/32 dev lo\n\
             neigh add {GUEST_NEIGHBOUR} lladdr {mac} nud permanent dev winlan0\n\
             route add {lan}/32 via {GUEST_NEIGHBOUR} dev winlan0 src {lan} onlink table 127\n",
        ))
    }

    /// Windows' end of `loopback0`.
    pub(super) fn set_up_windows_loopback0(&self) -> Result<()> {
        self.windows_side.attach("winlo0")?;
        self.windows.ip_batch(&self.windows_loopback0()?)
    }

    /// Its sysctls, at once, and the lines for `ip` that are to follow.
    fn windows_loopback0(&self) -> Result<String> {
        self.windows.set_sysctls([
            ("net/ipv4/conf/winlo0/accept_local", "1"),
            ("net/ipv4/conf/winlo0/route_localnet", "1"),
            ("net/ipv4/conf/winlo0/rp_filter", "0"),
        ])?;
        let mac = mac_text(GUEST_MAC);
        Ok(format!(
            "link set winlo0 up\n\
             neigh add {GUEST_NEIGHBOUR} lladdr {mac} nud permanent dev winlo0\n\
             route add 127.0.0.1/32 via {GUEST_NEIGHBOUR} dev winlo0 src 127.0.0.1 onlink table 127\n",
        ))
    }
}
