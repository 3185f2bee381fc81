//! Our maps: names, and types of keys and values.

use std::net::Ipv4Addr;

use anyhow::Result;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap, SkStorage};
use rustix::mm::ProtFlags;
use wsl_mirror_core::abi::{
    ClientCounts, LocalAddresses, Owner, OwnerPolicy, PortKey, PortPackets, PortPolicy, PortStats, Settings,
    Target, Verdicts,
};

use super::mapped::{Element, Mapped};
use super::typed::{Definition, MapKey, Typed};

/// `PORT_POLICY`, accessed.
pub type PolicyMap = Typed<HashMap<MapData, PortKey, PortPolicy>>;
/// `SOCKET_TARGET`, accessed.
pub type SocketTargets = Typed<SkStorage<MapData, Target>>;
/// `SOCKET_OWNER`, accessed.
pub type SocketOwners = Typed<SkStorage<MapData, Owner>>;

/// What the program goes by.
pub const SETTINGS: Definition<Typed<Array<MapData, Settings>>> = Definition::new("SETTINGS");
/// Policies of ports.
pub const PORT_POLICY: Definition<PolicyMap> = Definition::new("PORT_POLICY");
/// Policies of owners.
pub const OWNERS: Definition<Typed<HashMap<MapData, Owner, OwnerPolicy>>> = Definition::new("OWNERS");
/// The owners of sockets.
pub const SOCKET_OWNER: Definition<SocketOwners> = Definition::new("SOCKET_OWNER");
/// The targets of sockets.
pub const SOCKET_TARGET: Definition<SocketTargets> = Definition::new("SOCKET_TARGET");
/// Counters of Linux' own clients by outcome.
pub const CLIENTS: Definition<Typed<PerCpuArray<MapData, ClientCounts>>> = Definition::new("CLIENTS");
/// This machine's addresses whose clients are translated.
pub const LOCAL_ADDRESSES: Definition<Typed<Array<MapData, LocalAddresses>>> =
    Definition::new("LOCAL_ADDRESSES");
/// Counters by reason.
pub const VERDICTS: Definition<Typed<PerCpuArray<MapData, Verdicts>>> = Definition::new("VERDICTS");
/// Counters by port.
pub const PORT_STATS: Definition<Typed<PerCpuHashMap<MapData, PortKey, PortStats>>> =
    Definition::new("PORT_STATS");
/// Packets of carried flows by port.
pub const PORT_PACKETS: Definition<Mapped<PortPackets>> = Definition::new("PORT_PACKETS");

impl MapKey for PortKey {
    fn describe(&self) -> String {
        format!("port {}", self.port)
    }

    fn is_valid(&self) -> bool {
        Self::is_valid(*self)
    }
}

impl MapKey for Owner {
    fn describe(&self) -> String {
        self.name().to_owned()
    }
}

impl MapKey for Target {
    fn describe(&self) -> String {
        format!("the container {}:{}", Ipv4Addr::from(self.address), self.port)
    }
}

impl PolicyMap {
    /// The policy of a port.
    pub fn policy(&self, key: PortKey) -> Result<PortPolicy> {
        Ok(self.get(key)?.unwrap_or_default())
    }

    /// Replaces the policy of a port. A policy that says nothing takes no entry.
    pub fn set_policy(&mut self, key: PortKey, policy: PortPolicy) -> Result<()> {
        self.set(key, (policy != PortPolicy::default()).then_some(policy))
    }
}

impl Element for PortPackets {
    const PROTECTION: ProtFlags = ProtFlags::READ;
}
