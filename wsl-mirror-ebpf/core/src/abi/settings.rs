//! The loader's settings for the programs.

/// The bit of `skb->mark` that steered packets get unless the configuration names others.
///
/// Bits that others use: 0x1 (WSL's own `WSLOUTPUT` chain), 0x2000 (netavark, CNI portmap), 0x4000 and 0x8000
/// (kube-proxy), 0xf00 (Cilium), 0xff0000 (Tailscale).
pub const DEFAULT_MARK: u32 = 0x1000;

/// Value of `SETTINGS` (array, one element): what the loader tells the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// [`LAYOUT`](super::LAYOUT) of the loader that wrote this. 0: not written yet, and every packet passes.
    pub layout: u32,
    /// The bits that are set in `skb->mark` of a steered packet. No other bit is touched.
    pub mark: u32,
    /// A [`Policy`]: what ports get that neither `PORT_POLICY` nor `OWNERS` says anything about.
    pub default_policy: u32,
    /// A [`Hook`]: how the program is attached.
    pub hook: u32,
    /// Index of the interface that the program is attached to.
    pub ifindex: u32,
    /// Index of the interface on which the loader made the `clsact` qdisc, 0 if it made none: `unload` removes
    /// only a qdisc of ours.
    pub clsact_ifindex: u32,
    /// Name of the interface, filled up with zeros.
    pub interface: [u8; 16],
    /// Index of `lo` while delivery by `lo` is set up. 0: every packet takes the plain way.
    pub lo_ifindex: u32,
}

impl Settings {
    /// The name of the interface, as far as it is UTF-8.
    pub fn interface_name(&self) -> &str {
        let len = self.interface.iter().position(|byte| *byte == 0).unwrap_or(self.interface.len());
        core::str::from_utf8(&self.interface[..len]).unwrap_or_default()
    }
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// A tcx link on ingress (Linux 6.6 and later).
    Tcx = 1,
    /// A `cls_bpf` filter in direct-action mode on the ingress side of a clsact qdisc.
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
