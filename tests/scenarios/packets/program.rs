//! The programs as they are loaded, run over frames of our own, and what they have counted.

use std::{os::fd::AsRawFd, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, SkStorage},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use rustix::time::{ClockId, clock_gettime};
use wsl_mirror_core::abi::{
    CarriedDatagram, Carrying, FragmentKey, Path, PortKey, PortPackets, PortPolicy, Reason, Settings, Target,
    Verdicts,
};
use wsl_mirror_lab::{checks::OrPanic as _, pins, process::wait_for};

/// `TCX_NEXT`, as the kernel hands it back.
pub const NEXT: u32 = u32::MAX;
/// `TCX_DROP`.
pub const DROP: u32 = 2;

/// Offsets in `struct __sk_buff`.
const MARK: usize = 8;
const PRIORITY: usize = 32;
const IFINDEX: usize = 40;
const CB: std::ops::Range<usize> = 48..68;
const CONTEXT: usize = 192;

/// One of the two sides of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From Windows.
    Ingress,
    /// To Windows.
    Egress,
}

/// How the program on egress knows a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// By conntrack's note in the packet: `wsl_mirror_eg`.
    ByNote,
    /// By a lookup, before Linux 6.2: `wsl_mirror_egl`.
    ByLookup,
}

/// The pinned programs and their maps. To be opened and used inside the guest.
pub struct Program {
    ingress: SchedClassifier,
    egress: SchedClassifier,
    verdicts: PerCpuArray<MapData, Verdicts>,
    policies: HashMap<MapData, PortKey, PortPolicy>,
    settings: Array<MapData, Settings>,
    fragments: HashMap<MapData, FragmentKey, CarriedDatagram>,
    packets: Array<MapData, PortPackets>,
    targets: SkStorage<MapData, Target>,
    ifindex: u32,
    /// The form of the program on egress.
    pub border: Border,
    /// The bits that steered packets get.
    pub mark: u32,
    /// The alias.
    pub alias: [u8; 4],
    /// The source alias.
    pub source_alias: [u8; 4],
}

/// What came out of one run.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the program returned.
    pub action: u32,
    /// The frame after it.
    pub data: Vec<u8>,
    /// The mark after it.
    pub mark: u32,
}

impl Program {
    /// Opens what `wsl-mirror load` has pinned.
    pub fn open() -> Result<Self> {
        let open =
            |name| SchedClassifier::from_pin(pins::path(name)).with_context(|| format!("opening {name}"));
        let ingress = open("program")?;
        let egress = open("program_egress")?;
        let border = match egress.info()?.name_as_str() {
            Some("wsl_mirror_eg") => Border::ByNote,
            Some("wsl_mirror_egl") => Border::ByLookup,
            other => bail!("{other:?} is no program for egress"),
        };
        let map_of_settings: Array<MapData, Settings> = Map::Array(map("SETTINGS")?).try_into()?;
        let settings = map_of_settings.get(&0, 0)?;
        Ok(Self {
            ingress,
            egress,
            verdicts: Map::PerCpuArray(map("VERDICTS")?).try_into()?,
            policies: Map::HashMap(map("PORT_POLICY")?).try_into()?,
            settings: map_of_settings,
            fragments: Map::LruHashMap(map("FRAGMENTS")?).try_into()?,
            packets: Map::Array(map("PORT_PACKETS")?).try_into()?,
            targets: Map::SkStorage(map("SOCKET_TARGET")?).try_into()?,
            ifindex: settings.ifindex,
            border,
            mark: settings.mark,
            alias: settings.alias,
            source_alias: settings.source_alias,
        })
    }

    /// Runs one of the programs once, by `BPF_PROG_TEST_RUN`, as if the frame were on the interface that the program
    /// hangs on.
    pub fn run(&self, side: Side, frame: &[u8], mark: u32) -> Result<Outcome> {
        let classifier = match side {
            Side::Ingress => &self.ingress,
            Side::Egress => &self.egress,
        };
        let mut context = [0; CONTEXT];
        context[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&self.ifindex.to_ne_bytes());
        // Whoever set these must find them again.
        context[PRIORITY..PRIORITY + 4].copy_from_slice(&0x0001_0002_u32.to_ne_bytes());
        context[CB].fill(0xa5);
        let mut context_after = [0; CONTEXT + 64];
        let mut data = vec![0; frame.len() + 256];
        let result = classifier.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut data),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_after),
            ..TestRunOptions::new()
        })?;
        data.truncate(result.data_size_out as usize);
        let word = |at: usize| context_after.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        let mark = word(MARK).map(u32::from_ne_bytes).context("no mark")?;
        ensure!(context_after[PRIORITY..PRIORITY + 4] == context[PRIORITY..PRIORITY + 4], "skb->priority");
        ensure!(context_after[CB] == context[CB], "skb->cb");
        Ok(Outcome { action: result.return_value, data, mark })
    }

    /// What it has counted, on all CPUs together.
    pub fn counted(&self) -> Result<Verdicts> {
        let mut sum = Verdicts::default();
        for values in self.verdicts.get(&0, 0)?.iter() {
            for reason in Reason::ALL {
                *sum.counter(*reason) += values.get(*reason);
            }
        }
        Ok(sum)
    }

    /// Drops the records of carried datagrams that came in fragments.
    pub fn forget_fragments(&mut self) -> Result<()> {
        empty(&mut self.fragments)
    }

    /// Packets of carried flows to this port.
    pub fn carried(&self, port: PortKey) -> Result<PortPackets> {
        Ok(self.packets.get(&port.index(), 0)?)
    }

    /// Says whether flows can be carried.
    pub fn set_carrying(&mut self, carrying: Carrying) -> Result<()> {
        let settings = self.settings.get(&0, 0)?;
        Ok(self.settings.set(0, Settings { carrying: carrying as u32, ..settings }, 0)?)
    }

    /// Gives the programs another alias, before any flow is carried.
    pub fn set_alias(&mut self, alias: [u8; 4]) -> Result<()> {
        let settings = self.settings.get(&0, 0)?;
        self.alias = alias;
        Ok(self.settings.set(0, Settings { alias, ..settings }, 0)?)
    }

    /// Sets the global path.
    pub fn set_path(&mut self, path: Path) -> Result<()> {
        let settings = self.settings.get(&0, 0)?;
        Ok(self.settings.set(0, Settings { path: path as u32, ..settings }, 0)?)
    }

    /// Gives a listener this target, in place of any other.
    pub fn write_target(&mut self, listener: &impl AsRawFd, target: Target) -> Result<()> {
        self.targets.insert(listener, target, 0).context("writing a target")
    }

    /// Writes that the first fragment of this datagram was carried so long ago, direct or not.
    pub fn remember_fragments(
        &mut self,
        datagram: FragmentKey,
        ago: Duration,
        is_direct: bool,
    ) -> Result<()> {
        // The clock of bpf_ktime_get_ns.
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.try_into()?, now.tv_nsec.try_into()?);
        // A machine that has just booted has not been up for so long.
        let then = u64::try_from(now.as_nanos())?.wrapping_sub(u64::try_from(ago.as_nanos())?);
        let carried = CarriedDatagram { at: then, direct: u64::from(is_direct) };
        Ok(self.fragments.insert(datagram, carried, 0)?)
    }

    /// Writes a port's policy, as `bpftool map update` does.
    pub fn write_policy(&mut self, port: PortKey, policy: PortPolicy) -> Result<()> {
        Ok(self.policies.insert(port, policy, 0)?)
    }
}

fn empty<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys: Vec<_> = map.keys().collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| Ok(map.remove(key)?))
}

fn map(name: &str) -> Result<MapData> {
    MapData::from_pin(pins::path(name)).with_context(|| format!("opening the pinned map {name}"))
}

/// What was counted since `before`, one line per reason.
pub fn difference(before: &Verdicts, after: &Verdicts) -> Vec<(Reason, u64)> {
    let count = |reason: &Reason| (*reason, after.get(*reason) - before.get(*reason));
    Reason::ALL.iter().map(count).filter(|(_, count)| *count != 0).collect()
}

/// What was counted since `before`: at once, or soon, if the frame is still on its way. Nothing if nothing came.
pub fn wait_for_count(program: &Program, before: &Verdicts) -> Vec<(Reason, u64)> {
    wait_for_some(program, before, |_| true)
}

/// The same of IPv4 frames. The machines send ARP and IPv6 by themselves.
pub fn wait_for_ipv4_count(program: &Program, before: &Verdicts) -> Vec<(Reason, u64)> {
    wait_for_some(program, before, |reason| reason != Reason::NotIpv4)
}

fn wait_for_some(
    program: &Program,
    before: &Verdicts,
    is_meant: impl Fn(Reason) -> bool,
) -> Vec<(Reason, u64)> {
    let counted = wait_for("a count", Duration::from_secs(2), || {
        let mut counted = difference(before, &program.counted().or_panic());
        counted.retain(|(reason, _)| is_meant(*reason));
        Ok((!counted.is_empty()).then_some(counted))
    });
    counted.unwrap_or_default()
}
