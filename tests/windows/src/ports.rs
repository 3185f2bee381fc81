//! Who owns a port: the guest, Windows, or both.
//!
//! Windows never sends TCP 135, 1900, 2869, 3702, 5004, 5357, 5358 and UDP 68 to Linux, nor port 53 and `ignoredPorts`;
//! UDP 5353 and 5355 are shared (WSL 2.7.1 to 2.9.4, read). The lab writes these into `RULES`.
//!
//! A bind opens a port, and the leased block is the guest's (`mirrored-mode.md`). That Windows looks for the owner of
//! each packet, not of each flow, is the model's. So is the order of the rules below.

use wsl_mirror_windows::{Settings, port_key, rule};

use crate::maps::{PORTS, RULES};

/// Where Windows sends a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Owner {
    /// Windows' own sockets.
    Windows = 0,
    /// The guest.
    Guest = 1,
    /// Windows' sockets and the guest.
    Both = 2,
    /// Nobody: a Linux program has bound the port, and Windows sends the port to no Linux program.
    ///
    /// Seen of 5004: Windows does not reach it (WSL#12891). Connections from Linux never complete, although bind and
    /// listen succeed (WSL#41135).
    Nobody = 3,
    /// The Hyper-V firewall drops it, from Windows and from the guest alike (the model's).
    Firewall = 4,
}

impl Owner {
    /// The owner with this number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Guest,
            2 => Self::Both,
            3 => Self::Nobody,
            4 => Self::Firewall,
            _ => Self::Windows,
        }
    }
}

/// Who owns this destination port.
#[inline(always)]
pub fn owner(settings: &Settings, protocol: u8, port: u16) -> Owner {
    let rules = rules(protocol, port);
    let bound = is_bound(protocol, port);
    if rules & rule::NEVER_SENT != 0 {
        return if bound { Owner::Nobody } else { Owner::Windows };
    }
    if !(bound || is_leased(settings, port) || rules & rule::ALWAYS_SENT != 0) {
        return Owner::Windows;
    }
    if rules & rule::BLOCKED != 0 {
        return Owner::Firewall;
    }
    if rules & rule::SHARED != 0 { Owner::Both } else { Owner::Guest }
}

/// What the lab has written about the port.
#[inline(always)]
pub fn rules(protocol: u8, port: u16) -> u32 {
    // SAFETY: a value is one aligned word.
    unsafe { RULES.get(port_key(protocol, port)) }.copied().unwrap_or(0)
}

/// Whether the guest has bound the port and Windows knows.
#[inline(always)]
pub fn is_bound(protocol: u8, port: u16) -> bool {
    PORTS.get_ptr(port_key(protocol, port)).is_some()
}

/// Whether the port belongs to the block that Windows has leased to the guest.
#[inline(always)]
pub const fn is_leased(settings: &Settings, port: u16) -> bool {
    let [first, last] = settings.leased;
    first <= port && port <= last
}
