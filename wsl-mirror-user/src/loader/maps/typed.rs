//! Typed access to a map: arrays, hash maps, socket storage.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, SkStorage,
};

use crate::exit::{Exit, OrExit as _};
use crate::loader::pins;

/// `BPF_ANY`.
const ANY: u64 = 0;
/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

/// A map of ours: its name, and how it is accessed.
pub struct Definition<A> {
    name: &'static str,
    access: PhantomData<fn() -> A>,
}

impl<A: Access> Definition<A> {
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, access: PhantomData }
    }

    /// Its name, which is its pin's too.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The pinned map.
    pub fn pinned(&self) -> Result<A> {
        self.access(pins::open_map(self.name)?)
    }

    /// An open map of this name, pinned or not.
    pub fn access(&self, data: MapData) -> Result<A> {
        A::new(self.name, data)
    }
}

/// A way to access a map.
pub trait Access: Sized {
    /// Fails if the map is of another kind.
    fn new(name: &'static str, data: MapData) -> Result<Self>;
}

/// A map that is accessed by system calls. `M` is aya's type, with types of keys and values.
pub struct Typed<M> {
    name: &'static str,
    map: M,
}

impl<M: TryFrom<Map, Error = MapError>> Typed<M> {
    fn of(name: &'static str, map: Map) -> Result<Self> {
        let map = map.try_into().with_context(|| format!("{name} is not the kind of map that we made"))?;
        Ok(Self { name, map })
    }
}

impl<M> Typed<M> {
    fn read<T>(&self, result: Result<T, MapError>) -> Result<T> {
        result.or_exit(Exit::Kernel, || format!("cannot read the map {}", self.name))
    }
}

impl<V: Pod> Access for Typed<Array<MapData, V>> {
    fn new(name: &'static str, data: MapData) -> Result<Self> {
        Self::of(name, Map::Array(data))
    }
}

/// An array of one element.
impl<V: Pod> Typed<Array<MapData, V>> {
    /// The element.
    pub fn get(&self) -> Result<V> {
        self.read(self.map.get(&0, 0))
    }

    /// Replaces the element.
    pub fn set(&mut self, value: V) -> Result<()> {
        self.map.set(0, value, ANY).or_exit(Exit::Kernel, || format!("cannot write the map {}", self.name))
    }
}

/// A key of a hash map.
pub trait MapKey: Pod + Ord {
    /// The key in words, for errors.
    fn describe(&self) -> String;

    /// Whether the program can ever look the key up. bpftool writes any bytes.
    fn is_valid(&self) -> bool {
        true
    }
}

impl<K: MapKey, V: Pod> Access for Typed<HashMap<MapData, K, V>> {
    fn new(name: &'static str, data: MapData) -> Result<Self> {
        Self::of(name, Map::HashMap(data))
    }
}

impl<K: MapKey, V: Pod> Typed<HashMap<MapData, K, V>> {
    /// All entries with valid keys, in order.
    pub fn all(&self) -> Result<BTreeMap<K, V>> {
        let valid = self.map.iter().filter(|entry| !matches!(entry, Ok((key, _)) if !key.is_valid()));
        self.read(valid.collect())
    }

    /// The value of a key.
    pub fn get(&self, key: K) -> Result<Option<V>> {
        match self.map.get(&key, 0) {
            Err(MapError::KeyNotFound) => Ok(None),
            found => self.read(found.map(Some)),
        }
    }

    /// Replaces the value of a key, or removes the key.
    pub fn set(&mut self, key: K, value: Option<V>) -> Result<()> {
        let done = match value {
            Some(value) => self.map.insert(key, value, ANY),
            None => match self.map.remove(&key) {
                Err(MapError::KeyNotFound) => Ok(()),
                // Hash maps answer the removal of a missing key with ENOENT, which aya passes on.
                Err(error) if is(&error, ErrorKind::NotFound) => Ok(()),
                done => done,
            },
        };
        done.or_exit(Exit::Kernel, || format!("cannot write {} to the map {}", key.describe(), self.name))
    }
}

impl<V: Pod> Access for Typed<SkStorage<MapData, V>> {
    fn new(name: &'static str, data: MapData) -> Result<Self> {
        Self::of(name, Map::SkStorage(data))
    }
}

/// Socket storage: from user space its keys are descriptors.
impl<V: MapKey> Typed<SkStorage<MapData, V>> {
    /// Tags a socket unless it has a tag.
    pub fn tag_if_new(&mut self, socket: &impl AsRawFd, value: V) -> Result<()> {
        match self.map.insert(socket, value, NOEXIST) {
            Err(error) if is(&error, ErrorKind::AlreadyExists) => Ok(()),
            done => done.or_exit(Exit::Kernel, || {
                format!("cannot tag a socket of {} ({})", value.describe(), self.name)
            }),
        }
    }

    /// The value of a socket.
    pub fn get(&self, socket: &impl AsRawFd) -> Result<Option<V>> {
        match self.map.get(socket, 0) {
            Err(MapError::KeyNotFound) => Ok(None),
            found => self.read(found.map(Some)),
        }
    }

    /// Puts another value in the place of a socket's value, or removes it.
    pub fn set(&mut self, socket: &impl AsRawFd, value: Option<V>) -> Result<()> {
        let done = match value {
            Some(value) => self.map.insert(socket, value, ANY),
            None => match self.map.remove(socket) {
                Err(MapError::KeyNotFound) => Ok(()),
                Err(error) if is(&error, ErrorKind::NotFound) => Ok(()),
                done => done,
            },
        };
        done.or_exit(Exit::Kernel, || match value {
            Some(value) => format!("cannot write {} onto a socket ({})", value.describe(), self.name),
            None => format!("cannot remove what is written on a socket ({})", self.name),
        })
    }
}

impl<V: Pod> Access for Typed<PerCpuArray<MapData, V>> {
    fn new(name: &'static str, data: MapData) -> Result<Self> {
        Self::of(name, Map::PerCpuArray(data))
    }
}

/// A per-CPU array of one element.
impl<V: Pod> Typed<PerCpuArray<MapData, V>> {
    /// The element of each CPU.
    pub fn get(&self) -> Result<PerCpuValues<V>> {
        self.read(self.map.get(&0, 0))
    }
}

impl<K: Pod, V: Pod> Access for Typed<PerCpuHashMap<MapData, K, V>> {
    fn new(name: &'static str, data: MapData) -> Result<Self> {
        Self::of(name, Map::PerCpuHashMap(data))
    }
}

impl<K: Pod, V: Pod> Typed<PerCpuHashMap<MapData, K, V>> {
    /// All entries, with a value of each CPU.
    pub fn iter(&self) -> impl Iterator<Item = Result<(K, PerCpuValues<V>)>> {
        self.map.iter().map(|entry| self.read(entry))
    }
}

fn is(error: &MapError, kind: ErrorKind) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.kind() == kind)
}
