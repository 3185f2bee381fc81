//! WSL's networking modes.
//!
//! virtioproxy ("Consomme") has a `loopback0` with the rules of mirrored mode, and with an address of its own, which
//! mirrored mode's never has. What comes in for 127.0.0.1 from 127/8 meets the same rules in both, so it is steered in
//! both; all else, what comes from that address too, passes as it is. Nothing but what is shown depends on it.

use anyhow::Result;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;

use super::netlink;
use crate::exit::{Exit, OrExit as _};

/// How a distribution meets Windows' network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkingMode {
    /// What wsl-mirror is there for.
    Mirrored,
    /// It has a `loopback0` too, with an address.
    VirtioProxy,
    /// virtioproxy by its newer name.
    Consomme,
    /// `nat`: without a `loopback0`, as the three below.
    Nat,
    /// `none`.
    NoNetwork,
    /// `bridged`.
    Bridged,
    /// `wsl1`.
    Wsl1,
    /// This is WSL, and it does not say its mode; why.
    Unknown(String),
    /// The kernel is not WSL's.
    NotWsl,
}

impl NetworkingMode {
    /// The modes that `wslinfo --networking-mode` names.
    const NAMED: [Self; 7] = [
        Self::Mirrored,
        Self::VirtioProxy,
        Self::Consomme,
        Self::Nat,
        Self::NoNetwork,
        Self::Bridged,
        Self::Wsl1,
    ];

    /// The mode that `wslinfo` names.
    pub fn from_name(name: &str) -> Self {
        let named = Self::NAMED.into_iter().find(|mode| mode.name() == name);
        named.unwrap_or_else(|| Self::Unknown(format!("wslinfo says {name:?}")))
    }

    /// The mode of the interface of this index: a `loopback0` with an IPv4 address is virtioproxy's.
    pub fn of_interface(ifindex: u32) -> Result<Self> {
        let has_address = netlink::talk(|handle| async move {
            let mut addresses = handle.address().get().set_link_index_filter(ifindex).execute();
            let mut found = false;
            while let Some(address) = addresses.try_next().await? {
                found |= address.header.family == AddressFamily::Inet && address.header.index == ifindex;
            }
            Ok(found)
        })
        .or_exit(Exit::Kernel, || format!("cannot list the addresses of interface {ifindex}"))?;
        Ok(if has_address { Self::VirtioProxy } else { Self::Mirrored })
    }

    /// Whether there may be a `loopback0`, now or later.
    pub const fn may_have_loopback0(&self) -> bool {
        matches!(self, Self::Mirrored | Self::VirtioProxy | Self::Consomme | Self::Unknown(_))
    }

    /// For people and programs; as `wslinfo` writes it, if `wslinfo` names it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Mirrored => "mirrored",
            Self::VirtioProxy => "virtioproxy",
            Self::Consomme => "consomme",
            Self::Nat => "nat",
            Self::NoNetwork => "none",
            Self::Bridged => "bridged",
            Self::Wsl1 => "wsl1",
            Self::Unknown(_) => "unknown",
            Self::NotWsl => "no WSL",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_that_wslinfo_names_is_known() {
        for (name, mode, loopback0) in [
            ("mirrored", NetworkingMode::Mirrored, true),
            ("consomme", NetworkingMode::Consomme, true),
            ("virtioproxy", NetworkingMode::VirtioProxy, true),
            ("nat", NetworkingMode::Nat, false),
            ("none", NetworkingMode::NoNetwork, false),
            ("bridged", NetworkingMode::Bridged, false),
            ("wsl1", NetworkingMode::Wsl1, false),
        ] {
            assert_eq!(NetworkingMode::from_name(name), mode);
            assert_eq!((mode.may_have_loopback0(), mode.name()), (loopback0, name));
        }
        let unknown = NetworkingMode::from_name("teleported");
        assert!(
            unknown.may_have_loopback0()
                && matches!(&unknown, NetworkingMode::Unknown(why) if why.contains("teleported"))
        );
        assert!(!NetworkingMode::NotWsl.may_have_loopback0());
    }
}
