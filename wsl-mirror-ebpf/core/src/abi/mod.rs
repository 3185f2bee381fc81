//! Map keys and values, verdicts and reasons, one file a subject.
//!
//! Every type in a map is `#[repr(C)]` without implicit padding: the kernel compares its bytes (hash keys),
//! and people read and write them (`bpftool map dump`, `bpftool map update`). Numbers are in the machine's byte
//! order, ports included: 8080 is shown as 8080. Addresses are four bytes in the order in which one writes them.
//! A change to anything in a map is a new layout: it changes [`LAYOUT`] and with it the pin directory.

mod client;
mod counters;
mod fragment;
mod owner;
#[cfg(feature = "user")]
mod pod;
mod policy;
mod port;
mod reason;
mod settings;
mod target;

pub use client::{
    ADDRESSES, ClientCounts, ClientOutcome, Endpoint, LocalAddresses, TRANSLATIONS, Translation, Translations,
};
pub use counters::{PortPackets, PortStats};
pub use fragment::{CarriedDatagram, FragmentKey};
pub use owner::{BUILT_IN_OWNERS, Owner, OwnerPolicy};
pub use policy::{Path, Policy, PortPolicy};
pub use port::{PORTS, PortKey, Protocol};
pub use reason::{Reason, Verdict, Verdicts};
pub use settings::{
    Carrying, DEFAULT_ALIAS, DEFAULT_MARK, DEFAULT_SOURCE_ALIAS, Hook, LinuxClients, Settings,
};
pub use target::{DirectFlow, DirectFlowKey, EngineWay, Service, Target};

/// The directory in bpffs of every layout's pins.
pub const PINS: &str = "/sys/fs/bpf/wsl-mirror";

/// The version of this module's layout; part of the pin path (`/sys/fs/bpf/wsl-mirror/v2`).
///
/// Layout 1 belongs to the mechanism before the alias. No release has it.
pub const LAYOUT: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Padding would make two equal keys differ.
    #[test]
    fn keys_and_values_have_no_padding() {
        assert_eq!(size_of::<PortKey>(), 4);
        assert_eq!(size_of::<PortPolicy>(), 4);
        assert_eq!(size_of::<PortStats>(), 32);
        assert_eq!(size_of::<PortPackets>(), 16);
        assert_eq!(size_of::<Settings>(), 72);
        assert_eq!(size_of::<FragmentKey>(), 8);
        assert_eq!(size_of::<CarriedDatagram>(), 16);
        assert_eq!(size_of::<Target>(), 24);
        assert_eq!(size_of::<DirectFlowKey>(), 4);
        assert_eq!(size_of::<DirectFlow>(), 12);
        assert_eq!(size_of::<Translations>(), 128);
        assert_eq!(size_of::<LocalAddresses>(), 40);
        assert_eq!(size_of::<Owner>(), 20);
        assert_eq!(size_of::<OwnerPolicy>(), 4);
        assert_eq!(size_of::<Verdicts>(), Reason::ALL.len() * 8);
    }
}
