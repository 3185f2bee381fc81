//! The programs' maps. [`wsl_mirror_windows`] documents their keys and values.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use wsl_mirror_windows::{Bound, COUNTERS as PLACES, FlowKey, FragmentKey, Garble, Settings, Wire};

/// `BPF_F_NO_PREALLOC`: the kernel allocates each entry when it is made.
const NO_PREALLOC: u32 = 1;

#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Large enough for every port of both protocols.
#[map]
pub static PORTS: HashMap<u32, Bound> = HashMap::with_max_entries(131_072, NO_PREALLOC);

#[map]
pub static RULES: HashMap<u32, u32> = HashMap::with_max_entries(131_072, NO_PREALLOC);

#[map]
pub static FLOWS: LruHashMap<FlowKey, u8> = LruHashMap::with_max_entries(32_768, 0);

#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, u32> = LruHashMap::with_max_entries(1024, 0);

#[map]
pub static COUNTERS: Array<u64> = Array::with_max_entries(PLACES, 0);

#[map]
pub static GARBLE: Array<Garble> = Array::with_max_entries(1, 0);

#[map]
pub static WIRE: Array<Wire> = Array::with_max_entries(1, 0);
