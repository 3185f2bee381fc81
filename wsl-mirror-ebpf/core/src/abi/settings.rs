//! The loader's settings for the programs.

/// The bit of `skb->mark` that carried packets get unless the configuration names others. Nothing depends on it.
///
/// Bits that others use: 0x1 (WSL's own `WSLOUTPUT` chain), 0xf00 (Cilium), 0x1000 (netavark from 2.1 on), 0x2000
/// (netavark, CNI portmap), 0x4000 and 0x8000 (kube-proxy), 0xff0000 (Tailscale).
pub const DEFAULT_MARK: u32 = 0x80;

/// The alias unless the configuration names another one: the address to which carried flows are sent inside Linux.
///
/// A loopback address: a packet to it cannot leave this machine, whatever goes wrong.
pub const DEFAULT_ALIAS: [u8; 4] = [127, 119, 0, 1];

/// The source alias unless the configuration names another one: the address from which direct flows come inside Linux.
///
/// RFC 7600's dummy address: nobody's network has it. The kernel itself sends ICMP errors from it where an interface has no
/// address, so the programs touch TCP and UDP only.
pub const DEFAULT_SOURCE_ALIAS: [u8; 4] = [192, 0, 0, 8];

/// Value of `SETTINGS` (array, one element): what the loader tells the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// [`LAYOUT`](super::LAYOUT) of the loader that wrote this. 0: not written yet, and every packet passes.
    pub layout: u32,
    /// The bits that are set in `skb->mark` of a carried packet. No other bit is touched.
    pub mark: u32,
    /// A [`Policy`]: what ports get that neither `PORT_POLICY` nor `OWNERS` says anything about.
    pub default_policy: u32,
    /// A [`Hook`]: how the programs are attached.
    pub hook: u32,
    /// Index of the interface that the programs are attached to.
    pub ifindex: u32,
    /// Index of the interface on which the loader made the `clsact` qdisc, 0 if it made none: `unload` removes
    /// only a qdisc of ours.
    pub clsact_ifindex: u32,
    /// Name of the interface, filled up with zeros.
    pub interface: [u8; 16],
    /// The alias, 127.x.y.z, in the order in which one writes it.
    pub alias: [u8; 4],
    /// A [`Carrying`]: whether flows can be carried on this machine.
    pub carrying: u32,
    /// The source alias, in the order in which one writes it.
    pub source_alias: [u8; 4],
    /// A [`Path`](super::Path): the global one.
    pub path: u32,
    /// A [`LinuxClients`]: whether Linux' own clients are connected straight to containers.
    pub linux_clients: u32,
    /// The bit of `SO_MARK` by which policy route rules keep a client's connection on `lo`; 0: there are no such rules.
    pub lo_mark: u32,
    /// The cookie of the network namespace in which those rules are (`SO_NETNS_COOKIE`). Programs in other namespaces connect to
    /// a 127.0.0.1 of their own.
    pub netns_cookie: u64,
}

impl Settings {
    /// The name of the interface, as far as it is UTF-8.
    pub fn interface_name(&self) -> &str {
        let len = self.interface.iter().position(|byte| *byte == 0).unwrap_or(self.interface.len());
        core::str::from_utf8(&self.interface[..len]).unwrap_or_default()
    }
}

/// Whether flows can be carried on this machine, in whatever way.
///
/// A carried flow needs NAT's hooks. They exist only while a table has a nat chain, and neither an untracked packet nor
/// one in a conntrack zone of its own finds the flow's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Carrying {
    /// They cannot: every packet passes.
    Off = 0,
    /// They can.
    On = 1,
}

impl Carrying {
    /// The state that this number stands for. Unknown numbers mean [`Carrying::Off`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::On,
            _ => Self::Off,
        }
    }
}

/// Whether Linux' own clients of published ports are connected straight to the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LinuxClients {
    /// They are not.
    Off = 0,
    /// They are, wherever the container is known.
    Translated = 1,
}

impl LinuxClients {
    /// The choice that this number stands for. Unknown numbers mean [`LinuxClients::Off`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Translated,
            _ => Self::Off,
        }
    }
}

/// How the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// tcx links (Linux 6.6 and later).
    Tcx = 1,
    /// `cls_bpf` filters in direct-action mode on a clsact qdisc.
    ClsBpf = 2,
}

impl Hook {
    /// The hook that this number stands for.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Tcx),
            2 => Some(Self::ClsBpf),
            _ => None,
        }
    }

    /// `tcx` or `cls_bpf`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::ClsBpf => "cls_bpf",
        }
    }
}
