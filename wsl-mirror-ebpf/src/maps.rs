//! The programs' maps. [`wsl_mirror_core::abi`] documents their keys and values.

use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use wsl_mirror_core::abi::{
    CarriedDatagram, ClientCounts, DirectFlow, DirectFlowKey, FragmentKey, LAYOUT, LocalAddresses, Owner,
    OwnerPolicy, PORTS, PortKey, PortPackets, PortPolicy, PortStats, Settings, Target, Translations,
    Verdicts,
};

/// `BPF_F_NO_PREALLOC`: the kernel allocates each entry when it is made.
const NO_PREALLOC: usize = 1;
/// `BPF_F_MMAPABLE`, since Linux 5.5.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Large enough for every port of both protocols: exempting `1-65535` cannot fill it.
#[btf_map]
pub static PORT_POLICY: HashMap<PortKey, PortPolicy, 131_072, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static OWNERS: HashMap<Owner, OwnerPolicy, 1024, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static SOCKET_OWNER: SkStorage<Owner> = SkStorage::new();

#[btf_map]
pub static SOCKET_TARGET: SkStorage<Target> = SkStorage::new();

/// The cookies of sockets that were bound or handed on, for the agent. Without an agent the ring fills up, and the hooks
/// write no more.
#[btf_map]
pub static SOCKET_EVENTS: RingBuf<u64, 65_536> = RingBuf::new();

#[btf_map]
pub static VERDICTS: PerCpuArray<Verdicts, 1> = PerCpuArray::new();

#[btf_map]
pub static PORT_STATS: PerCpuHashMap<PortKey, PortStats, 131_072, NO_PREALLOC> = PerCpuHashMap::new();

/// Packets of carried flows, by [`PortKey::index`].
///
/// Apart from `PORT_STATS`, because the program counts nearly every packet here: it finds an array's element in 2 ns and
/// a hash map's in 30 (measured, `cargo xtask bench --packets`). `status` maps the array into memory: reading each of
/// the ports would take a call.
#[btf_map]
pub static PORT_PACKETS: Array<PortPackets, PORTS, MMAPABLE> = Array::new();

/// Carried datagrams that came in fragments.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, CarriedDatagram, 4096> = LruHashMap::new();

/// The translations of direct TCP flows, for the day when conntrack has lost their entries.
#[btf_map]
pub static DIRECT_FLOWS: LruHashMap<DirectFlowKey, DirectFlow, 16_384> = LruHashMap::new();

/// What Linux' own clients got, by outcome.
#[btf_map]
pub static CLIENTS: PerCpuArray<ClientCounts, 1> = PerCpuArray::new();

/// The translations of clients' sockets.
#[btf_map]
pub static SOCKET_TRANSLATIONS: SkStorage<Translations> = SkStorage::new();

/// This machine's LAN addresses whose clients are translated.
#[btf_map]
pub static LOCAL_ADDRESSES: Array<LocalAddresses, 1> = Array::new();

/// The loader's settings, once a loader of this layout has written them.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0).filter(|settings| settings.layout == LAYOUT)
}
