//! The Windows stand-in: the destination port decides who owns a connection, the guest or Windows.

use std::fmt::Write as _;

use anyhow::Result;

use super::{ETH0_MAC, GUEST_MAC, LAN_ADDRESS, Lab, REFLECTION_MAC, mac_text, range_text};

/// Stands for the guest in Windows' neighbour tables; never seen on the wire.
const GUEST_NEIGHBOUR: &str = "169.254.1.1";

impl Lab {
    pub(super) fn set_up_windows(&self) -> Result<()> {
        self.windows.set_sysctls([
            ("net/ipv4/ip_local_port_range", "49152 65535"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/winlan0/accept_local", "1"),
            ("net/ipv4/conf/winlan0/route_localnet", "1"),
            ("net/ipv4/conf/winlan0/rp_filter", "0"),
        ])?;
        let mut lines = format!(
            "link set winlan0 up\n\
             link set lo up\n\
             addr add {LAN_ADDRESS}/32 dev lo\n\
             rule del pref 0 lookup local\n",
        );
        for nic in ["winlo0", "winlan0"] {
            writeln!(lines, "rule add pref 0 iif {nic} lookup local")?;
        }
        for protocol in ["tcp", "udp"] {
            for ports in self.routed_ports() {
                let ports = range_text(ports);
                writeln!(lines, "rule add pref 1 ipproto {protocol} dport {ports} lookup 127")?;
            }
        }
        write!(
            lines,
            "rule add pref 2 lookup local\n\
             neigh add {GUEST_NEIGHBOUR} lladdr {mac} nud permanent dev winlan0\n\
             route add {LAN_ADDRESS}/32 via {GUEST_NEIGHBOUR} dev winlan0 src {LAN_ADDRESS} onlink table 127\n",
            mac = mac_text(ETH0_MAC),
        )?;
        let mut reflections = String::new();
        if self.options.host_address_loopback {
            reflections += &self.reflection("winlan0", &LAN_ADDRESS.to_string(), ETH0_MAC);
        }
        if self.options.loopback0 {
            lines += &self.windows_loopback0()?;
            reflections += &self.reflection("winlo0", "127.0.0.1", GUEST_MAC);
        }
        self.windows.ip_batch(&lines)?;
        if reflections.is_empty() { Ok(()) } else { self.windows.nft(&reflections) }
    }

    /// Windows' end of `loopback0`, and the reflection of what the guest sends to itself: without it a Linux
    /// client of a Linux server gets no answer, and half of the known bugs do not appear.
    pub(super) fn set_up_windows_loopback0(&self) -> Result<()> {
        self.windows.ip_batch(&self.windows_loopback0()?)?;
        self.windows.nft(&self.reflection("winlo0", "127.0.0.1", GUEST_MAC))
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

    /// Rules that send back what the guest sends to itself by way of `nic`.
    fn reflection(&self, nic: &str, address: &str, guest_mac: [u8; 6]) -> String {
        let ports = self.routed_ports().map(range_text).collect::<Vec<_>>().join(", ");
        let (guest, reflection) = (mac_text(guest_mac), mac_text(REFLECTION_MAC));
        // Declared first, so that deleting what an earlier NIC left (or did not) is no error.
        format!(
            "table netdev {nic} {{}}\n\
             delete table netdev {nic}\n\
             table netdev {nic} {{\n\
               chain reflect {{\n\
                 type filter hook ingress device {nic} priority 0;\n\
                 meta protocol ip ip daddr {address} meta l4proto {{tcp, udp}} th dport {{ {ports} }} \
                   ether daddr set {guest} ether saddr set {reflection} fwd to {nic}\n\
               }}\n\
             }}\n",
        )
    }
}
