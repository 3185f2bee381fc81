//! The guest: what WSL does to it, in the order in which WSL does it.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Lab, Network, WINDOWS_MAC, mac_text};

impl Lab {
    /// What WSL does in several steps, with as few programs as it takes: each costs as much as all that it is told.
    pub(super) fn set_up_guest(&self) -> Result<()> {
        // A new namespace copies these from the machine's, and a Debian machine's are not a WSL kernel's.
        self.guest.set_sysctls([
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/route_localnet", "0"),
            ("net/ipv4/conf/default/route_localnet", "0"),
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
        ])?;
        self.guest.nft(&(wsl_output_rules() + &wsl_postrouting_rules(&self.network())))?;
        // The address is there with dnsTunneling=true, the default.
        let mut lines = String::from("link set lo up\naddr add 10.255.255.254/32 dev lo\n");

        // A rule that names an absent NIC waits for it: WSL's rules outlive loopback0, so they are made once.
        lines += "rule del pref 0 lookup local\n";
        for protocol in ["tcp", "udp"] {
            writeln!(lines, "rule add pref 0 iif loopback0 ipproto {protocol} lookup local")?;
        }
        for table in [127, 128] {
            for protocol in ["tcp", "udp"] {
                writeln!(lines, "rule add pref 1 ipproto {protocol} lookup {table}")?;
            }
        }
        lines += "rule add pref 2 lookup local\n";
        if self.options.loopback0 {
            lines += &self.guest_loopback0()?;
        }

        for protocol in ["tcp", "udp"] {
            writeln!(lines, "rule add pref 0 iif eth0 ipproto {protocol} lookup local")?;
        }
        lines += &self.guest_eth0()?;
        self.guest.ip_batch(&lines)?;
        self.guest.set_sysctls([
            ("net/ipv4/conf/all/arp_filter", "1"),
            ("net/ipv4/conf/default/arp_filter", "1"),
        ])?;
        self.set_local_ports()
    }

    /// What is lost with `eth0` and made again when it comes back.
    pub(super) fn set_up_guest_eth0(&self) -> Result<()> {
        self.guest.ip_batch(&self.guest_eth0()?)
    }

    /// Has the guest use another block of ports: that of the network's.
    pub(super) fn lease_block_anew(&self) -> Result<()> {
        let old = "flush chain ip nat WSLPOSTROUTING\nflush chain ip6 nat WSLPOSTROUTING\n".to_owned();
        self.guest.nft(&(old + &wsl_postrouting_rules(&self.network())))?;
        self.set_local_ports()
    }

    fn set_local_ports(&self) -> Result<()> {
        let leased = self.network().leased;
        let ports = format!("{} {}", leased.start(), leased.end());
        self.guest.set_sysctls([("net/ipv4/ip_local_port_range", ports.as_str())])
    }

    /// Its sysctls, at once, and the lines for `ip` that are to follow.
    fn guest_eth0(&self) -> Result<String> {
        self.guest.set_sysctls([
            ("net/ipv4/conf/eth0/accept_local", "1"),
            ("net/ipv4/conf/eth0/route_localnet", "1"),
            ("net/ipv4/conf/eth0/rp_filter", "0"),
        ])?;
        let network = self.network();
        let (lan, subnet, router) = (network.lan, network.subnet(), network.router());
        let mut lines = format!(
            "link set eth0 up\n\
             addr replace {lan}/24 dev eth0 noprefixroute\n\
             route replace {subnet} dev eth0 proto kernel scope link metric 281\n\
             route replace default via {router} dev eth0 proto kernel metric 25\n",
        );
        if self.options.host_address_loopback {
            let (gateway, mac) = (network.gateway, mac_text(WINDOWS_MAC));
            write!(
                lines,
                "neigh replace {gateway} lladdr {mac} nud permanent dev eth0\n\
                 route replace {lan}/32 via {gateway} dev eth0 src {lan} onlink proto kernel table 128\n",
            )?;
        }
        Ok(lines)
    }

    /// What is lost with `loopback0` and made again when it comes back.
    pub(super) fn set_up_guest_loopback0(&self) -> Result<()> {
        self.guest.ip_batch(&self.guest_loopback0()?)
    }

    /// Its sysctls, at once, and the lines for `ip` that are to follow.
    fn guest_loopback0(&self) -> Result<String> {
        self.guest.set_sysctls([
            ("net/ipv4/conf/loopback0/accept_local", "1"),
            ("net/ipv4/conf/loopback0/route_localnet", "1"),
            ("net/ipv4/conf/loopback0/rp_filter", "0"),
        ])?;
        let (gateway, mac) = (self.gateway(), mac_text(WINDOWS_MAC));
        Ok(format!(
            "link set loopback0 up\n\
             neigh replace {gateway} lladdr {mac} nud permanent dev loopback0\n\
             route replace 127.0.0.1/32 via {gateway} dev loopback0 src 127.0.0.1 onlink proto kernel table 127\n",
        ))
    }
}

/// `WSLOUTPUT` overwrites any mark that a local process's packet carries.
pub(super) fn wsl_output_rules() -> String {
    ["ip", "ip6"]
        .map(|family| {
            format!(
                "add table {family} filter\n\
                 add chain {family} filter WSLOUTPUT {{ type filter hook output priority filter; }}\n\
                 add rule {family} filter WSLOUTPUT counter mark set 0x1\n\
                 add table {family} nat\n\
                 add chain {family} nat WSLPOSTROUTING {{ type nat hook postrouting priority srcnat - 1; }}\n",
            )
        })
        .concat()
}

/// Forwarded traffic leaves by `eth0` from one of the guest's own ports, or Windows would not send replies.
pub(super) fn wsl_postrouting_rules(network: &Network) -> String {
    let (low, high) = (network.leased.start(), network.leased.end());
    [("ip", "udp"), ("ip", "tcp"), ("ip6", "udp"), ("ip6", "tcp")]
        .map(|(family, protocol)| {
            format!(
                "add rule {family} nat WSLPOSTROUTING oif eth0 {protocol} sport 1-65535 mark != 0x1 counter \
                 masquerade to :{low}-{high}\n",
            )
        })
        .concat()
}
