//! The loaded programs of a lab's Windows, their links and maps.

use std::{
    collections::{BTreeMap, HashMap as Entries},
    fmt,
    fs::File,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData},
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, LinkOrder, SchedClassifier, TcAttachType,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact},
    },
    util::KernelVersion,
};
use wsl_mirror_windows::{Bound, Dropped, FlowKey, Garble, Settings, Wire};

use crate::cgroups;

/// `tests/windows`, built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/wsl-mirror-windows"));

/// The programs and maps of one lab.
pub(super) struct Object {
    programs: Mutex<Ebpf>,
    /// The links to NICs, by the NIC's name: those to a NIC that is gone go when it comes back.
    links: Mutex<BTreeMap<String, Vec<SchedClassifierLink>>>,
    settings: Mutex<Array<MapData, Settings>>,
    ports: Mutex<HashMap<MapData, u32, Bound>>,
    rules: Mutex<HashMap<MapData, u32, u32>>,
    flows: Mutex<HashMap<MapData, FlowKey, u8>>,
    counters: Mutex<Array<MapData, u64>>,
    garble: Mutex<Array<MapData, Garble>>,
    wire: Mutex<Array<MapData, Wire>>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").finish_non_exhaustive()
    }
}

impl Object {
    pub(super) fn load() -> Result<Self> {
        // The object names no kernel type: without the kernel's BTF, loading takes a tenth of the time.
        let mut object = EbpfLoader::new().btf(None).load(OBJECT)?;
        let mut map = |name: &str| object.take_map(name).with_context(|| format!("no map {name}"));
        let settings = map("SETTINGS")?.try_into()?;
        let ports = map("PORTS")?.try_into()?;
        let rules = map("RULES")?.try_into()?;
        let flows = map("FLOWS")?.try_into()?;
        let counters = map("COUNTERS")?.try_into()?;
        let garble = map("GARBLE")?.try_into()?;
        let wire = map("WIRE")?.try_into()?;
        for name in ["windows_sends", "windows_takes", "windows_sends6", "neighbour_sends"] {
            program::<SchedClassifier>(&mut object, name)?.load().with_context(|| name.to_owned())?;
        }
        let can_refuse = ensure_can_refuse().is_ok();
        for name in ["windows_asks4", "windows_asks6"].iter().filter(|_| can_refuse) {
            program::<CgroupSockAddr>(&mut object, name)?.load().with_context(|| (*name).to_owned())?;
        }
        for name in ["windows_hears4", "windows_hears6"] {
            program::<CgroupSock>(&mut object, name)?.load().with_context(|| name.to_owned())?;
        }
        Ok(Self {
            programs: Mutex::new(object),
            links: Mutex::default(),
            settings: Mutex::new(settings),
            ports: Mutex::new(ports),
            rules: Mutex::new(rules),
            flows: Mutex::new(flows),
            counters: Mutex::new(counters),
            garble: Mutex::new(garble),
            wire: Mutex::new(wire),
        })
    }

    /// Attaches the programs of bind(2) to the root of the cgroups: servers of the tests run in any cgroup.
    pub(super) fn hear_binds(&self) -> Result<()> {
        let root = cgroups::root()?;
        let root = File::open(&root).with_context(|| format!("opening {}", root.display()))?;
        let mut object = lock(&self.programs);
        let can_refuse = ensure_can_refuse().is_ok();
        for name in ["windows_asks4", "windows_asks6"].iter().filter(|_| can_refuse) {
            program::<CgroupSockAddr>(&mut object, name)?.attach(&root, CgroupAttachMode::Single)?;
        }
        for name in ["windows_hears4", "windows_hears6"] {
            program::<CgroupSock>(&mut object, name)?.attach(&root, CgroupAttachMode::Single)?;
        }
        Ok(())
    }

    /// Attaches the programs to a NIC of the calling thread's namespace.
    pub(super) fn attach(&self, nic: &str) -> Result<()> {
        self.attach_programs(
            nic,
            &[("windows_sends", TcAttachType::Egress), ("windows_takes", TcAttachType::Ingress)],
        )
    }

    /// Attaches the program that decides about `::1` to `lo` of the calling thread's namespace.
    pub(super) fn attach_ipv6(&self, lo: &str) -> Result<()> {
        self.attach_programs(lo, &[("windows_sends6", TcAttachType::Egress)])
    }

    /// Attaches the program of a neighbour's frames to a NIC of the calling thread's namespace.
    pub(super) fn attach_wire(&self, nic: &str) -> Result<()> {
        self.attach_programs(nic, &[("neighbour_sends", TcAttachType::Ingress)])
    }

    fn attach_programs(&self, nic: &str, programs: &[(&str, TcAttachType)]) -> Result<()> {
        let has_tcx = KernelVersion::current()? >= KernelVersion::new(6, 6, 0);
        if !has_tcx {
            qdisc_add_clsact(nic).context("adding clsact")?;
        }
        let mut object = lock(&self.programs);
        let mut links = Vec::new();
        for &(name, direction) in programs {
            let program = program::<SchedClassifier>(&mut object, name)?;
            if has_tcx {
                let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                let link = program.attach_with_options(nic, direction, options)?;
                links.push(program.take_link(link)?);
            } else {
                let options = TcAttachOptions::Netlink(NlOptions::default());
                let link = program.attach_with_options(nic, direction, options)?;
                // A filter goes with its NIC. To drop its link would delete a filter of this index wherever the
                // dropping thread happens to be.
                std::mem::forget(program.take_link(link)?);
            }
        }
        lock(&self.links).insert(nic.to_owned(), links);
        Ok(())
    }

    pub(super) fn settings(&self) -> Result<Settings> {
        lock(&self.settings).get(&0, 0).context("reading the settings of Windows")
    }

    pub(super) fn set_settings(&self, settings: Settings) -> Result<()> {
        lock(&self.settings).set(0, settings, 0).context("writing the settings of Windows")
    }

    /// The ports that the guest has bound, as Windows knows it, and when they were bound last.
    pub(super) fn ports(&self) -> Result<Entries<u32, Bound>> {
        lock(&self.ports).iter().collect::<Result<_, _>>().context("reading the ports of the guest")
    }

    pub(super) fn port(&self, key: u32) -> Option<Bound> {
        lock(&self.ports).get(&key, 0).ok()
    }

    pub(super) fn add_port(&self, key: u32, bound: Bound) -> Result<()> {
        lock(&self.ports).insert(key, bound, 0).context("adding a port of the guest")
    }

    pub(super) fn remove_port(&self, key: u32) -> Result<()> {
        lock(&self.ports).remove(&key).context("removing a port of the guest")
    }

    pub(super) fn rules(&self, key: u32) -> u32 {
        lock(&self.rules).get(&key, 0).unwrap_or(0)
    }

    pub(super) fn add_rule(&self, key: u32, bit: u32) -> Result<()> {
        self.write_rules(key, self.rules(key) | bit)
    }

    pub(super) fn remove_rule(&self, key: u32, bit: u32) -> Result<()> {
        self.write_rules(key, self.rules(key) & !bit)
    }

    fn write_rules(&self, key: u32, bits: u32) -> Result<()> {
        lock(&self.rules).insert(key, bits, 0).context("writing what holds for a port")
    }

    pub(super) fn clear_rules(&self) -> Result<()> {
        clear(&mut lock(&self.rules)).context("clearing what holds for the ports")
    }

    pub(super) fn forget_flows(&self) -> Result<()> {
        clear(&mut lock(&self.flows)).context("forgetting all flows")
    }

    pub(super) fn set_garble(&self, garble: Garble) -> Result<()> {
        lock(&self.garble).set(0, garble, 0).context("writing which ports Windows garbles")
    }

    pub(super) fn garble(&self) -> Result<Garble> {
        lock(&self.garble).get(&0, 0).context("reading which ports Windows has garbled")
    }

    pub(super) fn set_wire(&self, wire: Wire) -> Result<()> {
        lock(&self.wire).set(0, wire, 0).context("writing the interfaces of Windows on the LAN")
    }

    pub(super) fn dropped(&self, reason: Dropped) -> Result<u64> {
        lock(&self.counters).get(&(reason as u32), 0).context("reading a counter of Windows")
    }
}

/// Fails where Windows cannot refuse binds, so that no test waits in vain for a refusal.
pub(super) fn ensure_can_refuse() -> Result<()> {
    ensure_kernel_can_refuse(KernelVersion::current()?)
}

/// By `bpf_set_retval` a program gives bind(2) an error.
fn ensure_kernel_can_refuse(kernel: KernelVersion) -> Result<()> {
    ensure!(
        kernel >= KernelVersion::new(5, 18, 0),
        "refusing binds needs Linux 5.18 (bpf_set_retval); this is Linux {kernel}"
    );
    Ok(())
}

fn clear<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
    for key in keys {
        match map.remove(&key) {
            // A program may have been first: an LRU map makes room.
            Err(aya::maps::MapError::KeyNotFound) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn program<'a, P>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{KernelVersion, ensure_kernel_can_refuse};

    #[test]
    fn refusing_binds_needs_linux_5_18() {
        ensure_kernel_can_refuse(KernelVersion::new(5, 18, 0)).unwrap();
        let error = ensure_kernel_can_refuse(KernelVersion::new(5, 17, 15)).unwrap_err().to_string();
        assert!(error.contains("needs Linux 5.18") && error.contains("5.17.15"), "{error}");
    }
}
