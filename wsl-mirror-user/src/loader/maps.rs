//! The pinned maps, typed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, SkStorage};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use wsl_mirror_core::abi::{
    Owner, OwnerPolicy, PORTS, PortDelivery, PortKey, PortPolicy, PortRule, PortStats, Reason, Settings,
    Verdicts,
};

use super::pins;
use crate::exit::{Exit, OrExit as _};

/// `BPF_ANY`.
const ANY: u64 = 0;
/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

fn open(name: &str) -> Result<MapData> {
    let path = pins::path(name);
    MapData::from_pin(&path)
        .or_exit(Exit::Kernel, || format!("cannot open the pinned map {}", path.display()))
}

/// `SETTINGS`.
pub struct SettingsMap(Array<MapData, Settings>);

impl SettingsMap {
    /// The pinned one.
    pub fn pinned() -> Result<Self> {
        Self::from_map(Map::Array(open("SETTINGS")?))
    }

    /// One that need not be pinned yet.
    pub fn from_map(map: Map) -> Result<Self> {
        Ok(Self(map.try_into().context("SETTINGS is not the kind of map that we made")?))
    }

    /// What the program goes by now.
    pub fn get(&self) -> Result<Settings> {
        self.0.get(&0, 0).or_exit(Exit::Kernel, || "cannot read the map SETTINGS".into())
    }

    /// What the program shall go by.
    pub fn set(&mut self, settings: Settings) -> Result<()> {
        self.0.set(0, settings, ANY).or_exit(Exit::Kernel, || "cannot write the map SETTINGS".into())
    }
}

/// `PORT_POLICY`.
pub struct PolicyMap(HashMap<MapData, PortKey, PortPolicy>);

impl PolicyMap {
    /// The pinned one.
    pub fn pinned() -> Result<Self> {
        Self::from_map(Map::HashMap(open("PORT_POLICY")?))
    }

    /// One that need not be pinned yet.
    pub fn from_map(map: Map) -> Result<Self> {
        Ok(Self(map.try_into().context("PORT_POLICY is not the kind of map that we made")?))
    }

    /// Everything that is written about ports, in order. Keys that are no port's (bpftool writes any bytes) mean
    /// nothing to the program either.
    pub fn all(&self) -> Result<BTreeMap<PortKey, PortPolicy>> {
        self.0
            .iter()
            .filter(|entry| !matches!(entry, Ok((key, _)) if !key.is_valid()))
            .collect::<Result<_, _>>()
            .or_exit(Exit::Kernel, || "cannot read the map PORT_POLICY".into())
    }

    /// What is written about a port.
    pub fn get(&self, key: PortKey) -> Result<PortPolicy> {
        match self.0.get(&key, 0) {
            Ok(policy) => Ok(policy),
            Err(MapError::KeyNotFound) => Ok(PortPolicy::default()),
            Err(error) => Err(error).or_exit(Exit::Kernel, || "cannot read the map PORT_POLICY".into()),
        }
    }

    /// Replaces what is written about a port. An entry that says nothing is removed.
    pub fn set(&mut self, key: PortKey, policy: PortPolicy) -> Result<()> {
        let done = if policy == PortPolicy::default() {
            match self.0.remove(&key) {
                Err(MapError::KeyNotFound) => Ok(()),
                // hash maps answer a removal of nothing with ENOENT, which aya hands on as it is
                Err(MapError::SyscallError(error))
                    if error.io_error.kind() == std::io::ErrorKind::NotFound =>
                {
                    Ok(())
                }
                done => done,
            }
        } else {
            self.0.insert(key, policy, ANY)
        };
        done.or_exit(Exit::Kernel, || format!("cannot write port {} to the map PORT_POLICY", key.port))
    }
}

/// `OWNERS`.
pub struct OwnersMap(HashMap<MapData, Owner, OwnerPolicy>);

impl OwnersMap {
    /// The pinned one.
    pub fn pinned() -> Result<Self> {
        Self::from_map(Map::HashMap(open("OWNERS")?))
    }

    /// One that need not be pinned yet.
    pub fn from_map(map: Map) -> Result<Self> {
        Ok(Self(map.try_into().context("OWNERS is not the kind of map that we made")?))
    }

    /// Everything that is written about owners.
    pub fn all(&self) -> Result<BTreeMap<Owner, OwnerPolicy>> {
        self.0.iter().collect::<Result<_, _>>().or_exit(Exit::Kernel, || "cannot read the map OWNERS".into())
    }

    /// Replaces what is written about an owner, or removes it.
    pub fn set(&mut self, owner: Owner, policy: Option<OwnerPolicy>) -> Result<()> {
        match policy {
            Some(policy) => self.0.insert(owner, policy, ANY),
            None => self.0.remove(&owner),
        }
        .or_exit(Exit::Kernel, || format!("cannot write {} to the map OWNERS", owner.name()))
    }
}

/// `SOCKET_OWNER`: from user space, its keys are descriptors.
pub struct SocketOwners(SkStorage<MapData, Owner>);

impl SocketOwners {
    /// The pinned one.
    pub fn pinned() -> Result<Self> {
        Self::from_map(Map::SkStorage(open("SOCKET_OWNER")?))
    }

    /// One that need not be pinned yet.
    pub fn from_map(map: Map) -> Result<Self> {
        Ok(Self(map.try_into().context("SOCKET_OWNER is not the kind of map that we made")?))
    }

    /// Tags a socket unless it has a tag.
    pub fn tag_if_new(&mut self, socket: &impl AsRawFd, owner: Owner) -> Result<()> {
        match self.0.insert(socket, owner, NOEXIST) {
            Ok(()) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            Err(error) => Err(error)
                .or_exit(Exit::Kernel, || format!("cannot tag a socket of {} (SOCKET_OWNER)", owner.name())),
        }
    }
}

/// `VERDICTS`, summed over the CPUs.
pub fn verdicts() -> Result<Verdicts> {
    let map: PerCpuArray<MapData, Verdicts> = Map::PerCpuArray(open("VERDICTS")?)
        .try_into()
        .context("VERDICTS is not the kind of map that we made")?;
    let values = map.get(&0, 0).or_exit(Exit::Kernel, || "cannot read the map VERDICTS".into())?;
    let mut sum = Verdicts::default();
    for value in values.iter() {
        for reason in Reason::ALL {
            *sum.counter(*reason) += value.get(*reason);
        }
    }
    Ok(sum)
}

/// What happened on a port: `PORT_STATS`, summed over the CPUs, and `PORT_PACKETS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTraffic {
    /// Flows that were steered.
    pub steered_flows: u64,
    /// Their packets.
    pub steered_packets: u64,
    /// Packets that passed untouched.
    pub passed_packets: u64,
    /// Packets that passed because one of our calls failed.
    pub failed_packets: u64,
}

/// Every port on which something happened.
pub fn port_traffic() -> Result<BTreeMap<PortKey, PortTraffic>> {
    let stats: PerCpuHashMap<MapData, PortKey, PortStats> = Map::PerCpuHashMap(open("PORT_STATS")?)
        .try_into()
        .context("PORT_STATS is not the kind of map that we made")?;
    let mut ports: BTreeMap<PortKey, PortTraffic> = BTreeMap::new();
    for entry in &stats {
        let (key, values) = entry.or_exit(Exit::Kernel, || "cannot read the map PORT_STATS".into())?;
        let port = ports.entry(key).or_default();
        for value in values.iter() {
            port.steered_flows += value.steered_flows;
            port.steered_packets += value.steered_flows;
            port.passed_packets += value.passed_packets;
            port.failed_packets += value.failed_packets;
        }
    }
    // All of them: a flow that was steered before the last unload goes on, and began in no map that is left.
    for (index, packets) in (0..).zip(port_packets()?) {
        if packets != 0 {
            ports.entry(PortKey::at_index(index)).or_default().steered_packets += packets;
        }
    }
    Ok(ports)
}

/// `PORT_DELIVERY`, in memory: the program writes one field of an element and we the other, each by itself.
pub struct DeliveryMap {
    start: ptr::NonNull<PortDelivery>,
    /// The mapping is of it.
    _map: MapData,
}

impl DeliveryMap {
    /// The pinned one.
    pub fn pinned() -> Result<Self> {
        Self::from_data(open("PORT_DELIVERY")?)
    }

    /// One that need not be pinned yet.
    pub fn from_map(map: Map) -> Result<Self> {
        match map {
            Map::Array(data) => Self::from_data(data),
            _ => anyhow::bail!("PORT_DELIVERY is not the kind of map that we made"),
        }
    }

    fn from_data(map: MapData) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start =
            unsafe { mmap(ptr::null_mut(), Self::LENGTH, protection, MapFlags::SHARED, map.fd().as_fd(), 0) }
                .or_exit(Exit::Kernel, || "cannot map PORT_DELIVERY into memory".into())?;
        let start = ptr::NonNull::new(start.cast()).context("PORT_DELIVERY was mapped nowhere")?;
        Ok(Self { start, _map: map })
    }

    const LENGTH: usize = PORTS * size_of::<PortDelivery>();

    /// What it says of rules.
    pub fn rules(&self) -> BTreeMap<PortKey, PortRule> {
        let rule = |key: PortKey| PortRule::from_number(self.field(key).load(Ordering::Relaxed));
        (0..).take(PORTS).map(PortKey::at_index).filter_map(|key| Some((key, rule(key)?))).collect()
    }

    /// Writes which rule is known for this port.
    pub fn set(&mut self, key: PortKey, rule: Option<PortRule>) {
        self.field(key).store(rule.map_or(0, |rule| rule as u32), Ordering::Relaxed);
    }

    fn field(&self, key: PortKey) -> &AtomicU32 {
        // SAFETY: every key's index lies within the mapping, which is page-aligned.
        let element = unsafe { self.start.add(key.index() as usize) };
        // SAFETY: of the element no reference is made, only a pointer to its field.
        let field = unsafe { &raw mut (*element.as_ptr()).rule };
        // SAFETY: an aligned u32 that lives as long as the mapping; others read it.
        unsafe { AtomicU32::from_ptr(field) }
    }
}

impl Drop for DeliveryMap {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), Self::LENGTH) };
    }
}

/// `PORT_PACKETS`, read where it lies.
fn port_packets() -> Result<Vec<u64>> {
    let map = open("PORT_PACKETS")?;
    let length = PORTS * size_of::<u64>();
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let start =
        unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, map.fd().as_fd(), 0) }
            .or_exit(Exit::Kernel, || "cannot map PORT_PACKETS into memory".into())?;
    let counters = start.cast::<AtomicU64>();
    let packets = (0..PORTS)
        .map(|index| {
            // SAFETY: within the mapping, which is page-aligned.
            let counter = unsafe { counters.add(index) };
            // SAFETY: as above; programs add to it meanwhile, and nobody else writes.
            unsafe { &*counter }.load(Ordering::Relaxed)
        })
        .collect();
    // SAFETY: nothing refers to the mapping any more.
    unsafe { munmap(start, length) }.context("cannot unmap PORT_PACKETS")?;
    Ok(packets)
}
