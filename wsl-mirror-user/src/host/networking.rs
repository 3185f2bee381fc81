//! Which of WSL's networking modes an interface is of.
//!
//! virtioproxy ("Consomme") has a `loopback0` with the rules of mirrored mode, and with an address of its own, which
//! mirrored mode's never has. What comes in for 127.0.0.1 from 127/8 meets the same rules in both, so it is steered in
//! both; all else, what comes from that address too, passes as it is. Nothing but what is shown depends on it.

use anyhow::Result;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;

use super::netlink;
use crate::exit::{Exit, OrExit as _};

/// The mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Networking {
    /// `networkingMode=mirrored`.
    Mirrored,
    /// `networkingMode=virtioproxy`, also called consomme.
    VirtioProxy,
}

impl Networking {
    /// As `wslinfo --networking-mode` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mirrored => "mirrored",
            Self::VirtioProxy => "virtioproxy",
        }
    }

    /// By whether the interface of this index has an IPv4 address.
    pub fn of(ifindex: u32) -> Result<Self> {
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
}
