//! Linux' own clients, in turns on each road: of a container, and of a program on the same Linux.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use wsl_mirror_lab::{
    Lab, Namespace, checks, loopback, nat,
    process::{Background, COMMAND_LIMIT, wait_for},
    servers::{self, Server},
    services::TcpService,
};
use xtask::progress::Step;

use super::{
    comparison::{Comparison, Quantity},
    cpu::Others,
    load::{self, Load, Ports},
    statistics::Limit,
    traffic::Effort,
};

/// A way from a client in Linux to its server. All name 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Road {
    /// To a container without us: to Windows, back, and through docker-proxy.
    Proxy,
    /// To a container after `load`: the hooks connect the socket to it.
    Translated,
    /// To a program on Linux without us: to Windows and back.
    Hairpin,
    /// To a program on Linux under `run`: the hooks keep the connection on `lo`.
    KeptOnLo,
    /// To a program on a machine without WSL's routing.
    PlainLo,
}

/// The roads to a container.
const TO_CONTAINER: [Road; 2] = [Road::Proxy, Road::Translated];
/// The roads to a program. [`Road::KeptOnLo`] is in the middle, so that both comparisons are of neighbours.
const TO_PROGRAM: [Road; 3] = [Road::Hairpin, Road::KeptOnLo, Road::PlainLo];

const RATES: [Quantity; 3] =
    [Quantity::Rate(Load::Throughput), Quantity::Rate(Load::KeepAlive), Quantity::Rate(Load::Connections)];

/// So many packets of others may leave by `loopback0` during a measurement.
const STRAY_PACKETS: u64 = 20;

impl Road {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "docker-proxy",
            Self::Translated => "translated",
            Self::Hairpin => "hairpin",
            Self::KeptOnLo => "kept on lo",
            Self::PlainLo => "plain lo",
        }
    }

    /// Whether its packets leave by `loopback0`.
    const fn is_by_windows(self) -> bool {
        matches!(self, Self::Proxy | Self::Hairpin)
    }
}

/// What is called.
pub(super) struct Scene<'a> {
    /// A guest with Docker and the container.
    containers: &'a Lab,
    /// Two guests without an engine, whose only rules are WSL's, as on the plain machine.
    without_us: Lab,
    with_agent: Lab,
    plain: Namespace,
    ports: Ports,
    _agent: Background,
    _servers: Vec<Server>,
}

impl<'a> Scene<'a> {
    /// Beside a lab whose containers are published on `ports`.
    pub(super) fn set(containers: &'a Lab, ports: Ports) -> Result<Self> {
        let guest = || Lab::builder().leases(containers.leased()).build();
        let (without_us, with_agent) = (guest()?, guest()?);
        let plain = without_us.plain_lo()?;
        let mut all = Vec::new();
        for namespace in [without_us.guest(), with_agent.guest(), &plain] {
            namespace.set_sysctls([("net/ipv4/tcp_tw_reuse", "1")])?;
            for (port, service) in [(ports.echo, TcpService::Echo), (ports.sink, TcpService::Sink)] {
                all.push(servers::tcp(namespace, loopback(port), service)?);
            }
        }
        let agent = Background::spawn(&mut with_agent.wsl_mirror_command(&["run"])?)?;
        let kept = || Ok(connect_stays_on_lo(&with_agent, ports.echo)?.then_some(()));
        wait_for("a connection to be kept on lo", COMMAND_LIMIT, kept)
            .with_context(|| format!("the agent said: {}", agent.output()))?;
        Ok(Self { containers, without_us, with_agent, plain, ports, _agent: agent, _servers: all })
    }

    fn lab(&self, road: Road) -> &Lab {
        match road {
            Road::Proxy | Road::Translated => self.containers,
            Road::Hairpin | Road::PlainLo => &self.without_us,
            Road::KeptOnLo => &self.with_agent,
        }
    }

    fn client(&self, road: Road) -> &Namespace {
        match road {
            Road::PlainLo => &self.plain,
            Road::Proxy | Road::Translated | Road::Hairpin | Road::KeptOnLo => self.lab(road).guest(),
        }
    }

    /// One quantity on this road.
    fn measure(&self, road: Road, quantity: Quantity, time: Duration) -> Result<f64> {
        let (lab, client) = (self.lab(road), self.client(road));
        if road == Road::Translated {
            lab.wsl_mirror(&["load"])?.success()?;
        }
        nat::conntrack_flush(client)?;
        let group = InGroup::enter(lab)?;
        let before = settled(lab)?;
        let value = match quantity {
            Quantity::Rate(load) => load.run(client, self.ports, time).map(|rate| rate.per_second),
            Quantity::ConnectTime => load::connect_time(client, self.ports, time),
            Quantity::Cpu => bail!("no CPU seconds of Linux' own clients"),
        };
        let value = value.with_context(|| format!("with {}", road.name()))?;
        let packets = left_by_loopback0(lab)? - before;
        drop(group);
        // The plain machine has no loopback0: its guest's says nothing.
        ensure!(
            road == Road::PlainLo || (packets > STRAY_PACKETS) == road.is_by_windows(),
            "{}: {packets} packets left by loopback0: another road was measured",
            road.name()
        );
        if road == Road::Translated {
            lab.wsl_mirror(&["unload"])?.success()?;
        }
        Ok(value)
    }
}

/// Whether a connection to a program of the guest leaves no packet on `loopback0`.
fn connect_stays_on_lo(lab: &Lab, port: u16) -> Result<bool> {
    let before = left_by_loopback0(lab)?;
    checks::linux(lab, port).echo(b"hello")?;
    Ok(left_by_loopback0(lab)? == before)
}

/// This process in a lab's cgroup, where the hooks of its `load` see the sockets that are made meanwhile.
struct InGroup {
    /// The group of before.
    home: PathBuf,
}

impl InGroup {
    fn enter(lab: &Lab) -> Result<Self> {
        let group = lab.group("clients")?;
        let root = group.ancestors().nth(2).context("a lab's cgroup has no parent")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
        // Of version 2: `0::/path`.
        let path =
            own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup of version 2")?;
        let home = root.join(path);
        move_to(&group)?;
        Ok(Self { home })
    }
}

impl Drop for InGroup {
    fn drop(&mut self) {
        // If this fails, the next run removes the lab's cgroup.
        let _ = move_to(&self.home);
    }
}

fn move_to(group: &Path) -> Result<()> {
    let path = group.join("cgroup.procs");
    fs::write(&path, "0").with_context(|| format!("moving this process by {}", path.display()))
}

/// How many packets left the guest by `loopback0`, ever.
fn left_by_loopback0(lab: &Lab) -> Result<u64> {
    let path = "/sys/class/net/loopback0/statistics/tx_packets";
    let text = lab.guest().enter(|| fs::read_to_string(path)).with_context(|| format!("reading {path}"))?;
    text.trim().parse().with_context(|| format!("{path} says {text}"))
}

/// The same, once the connections of the measurement before are closed.
fn settled(lab: &Lab) -> Result<u64> {
    const QUIET: Duration = Duration::from_millis(20);
    wait_for("loopback0 to be quiet", COMMAND_LIMIT, || {
        let before = left_by_loopback0(lab)?;
        thread::sleep(QUIET);
        Ok((left_by_loopback0(lab)? == before).then_some(before))
    })
}

/// All rounds of a quantity, each with a value for each road of the group.
struct Series<const N: usize> {
    quantity: Quantity,
    rounds: Vec<[f64; N]>,
}

impl<const N: usize> Series<N> {
    fn compare(&self, road: usize, other: usize, limit: Option<Limit>) -> Comparison {
        let values = |road: usize| -> Vec<f64> { self.rounds.iter().map(|round| round[road]).collect() };
        Comparison::of(self.quantity, &values(road), &values(other), limit)
    }
}

/// What all roads came to.
pub(super) struct Measured {
    to_container: Vec<Series<{ TO_CONTAINER.len() }>>,
    to_program: Vec<Series<{ TO_PROGRAM.len() }>>,
    /// The share of the CPUs that others had meanwhile.
    pub(super) others: f64,
}

impl Measured {
    /// A translated client against one of docker-proxy.
    pub(super) fn translated_against_proxy(&self) -> Vec<Comparison> {
        let limit = |quantity| match quantity {
            Quantity::Rate(Load::Throughput) => Some(Limit::AtLeast(1.6)),
            Quantity::Rate(Load::KeepAlive) => Some(Limit::AtLeast(3.0)),
            Quantity::Rate(Load::Connections) => Some(Limit::AtLeast(2.0)),
            Quantity::Cpu | Quantity::ConnectTime => None,
        };
        self.to_container.iter().map(|series| series.compare(1, 0, limit(series.quantity))).collect()
    }

    /// A connection that is kept on `lo` against one on a plain `lo`.
    pub(super) fn kept_against_plain(&self) -> Vec<Comparison> {
        let limit = |quantity| match quantity {
            Quantity::Rate(Load::Throughput) => Some(Limit::AtLeast(0.97)),
            Quantity::Rate(Load::KeepAlive) => Some(Limit::AtLeast(0.95)),
            Quantity::Rate(Load::Connections) => Some(Limit::AtLeast(0.85)),
            Quantity::ConnectTime => Some(Limit::AtMost(1.3)),
            Quantity::Cpu => None,
        };
        self.to_program.iter().map(|series| series.compare(1, 2, limit(series.quantity))).collect()
    }

    /// A connection that is kept on `lo` against one that travels to Windows and back.
    pub(super) fn kept_against_hairpin(&self) -> Vec<Comparison> {
        self.to_program.iter().map(|series| series.compare(1, 0, None)).collect()
    }
}

/// Measures; wsl-mirror is not loaded beside the container.
pub(super) fn measure(scene: &Scene<'_>, effort: Effort, progress: &Step) -> Result<Measured> {
    let others = Others::watch()?;
    let to_container = group(scene, TO_CONTAINER, &RATES, effort, progress)?;
    let quantities = RATES.into_iter().chain([Quantity::ConnectTime]).collect::<Vec<_>>();
    let to_program = group(scene, TO_PROGRAM, &quantities, effort, progress)?;
    Ok(Measured { to_container, to_program, others: others.share()? })
}

/// All roads of a group in turns, after one of each to warm up.
fn group<const N: usize>(
    scene: &Scene<'_>,
    roads: [Road; N],
    quantities: &[Quantity],
    effort: Effort,
    progress: &Step,
) -> Result<Vec<Series<N>>> {
    let of = roads.map(Road::name).join(", ");
    let mut all: Vec<_> =
        quantities.iter().map(|quantity| Series { quantity: *quantity, rounds: Vec::new() }).collect();
    progress.set(format!("{of}: warming up"));
    for series in &all {
        for road in roads {
            scene.measure(road, series.quantity, effort.time)?;
        }
    }
    for round in 0..effort.rounds {
        progress.set(format!("{of}: round {} of {}", round + 1, effort.rounds));
        for series in &mut all {
            let mut order: [usize; N] = std::array::from_fn(|index| index);
            // A B C C B A: what drifts, drifts for all.
            if round % 2 == 1 {
                order.reverse();
            }
            let mut values = [0.0; N];
            for road in order {
                values[road] = scene.measure(roads[road], series.quantity, effort.time)?;
            }
            series.rounds.push(values);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::{super::statistics::Verdict, *};

    /// Each road is as fast as its factor says, on a machine that becomes faster.
    fn series<const N: usize>(quantities: &[Quantity], factors: [f64; N]) -> Vec<Series<N>> {
        let round = |number: i32| factors.map(|factor| factor * f64::from(100 + number * 7));
        let rounds = || (0..16).map(round).collect();
        quantities.iter().map(|quantity| Series { quantity: *quantity, rounds: rounds() }).collect()
    }

    fn measured(translated: f64, kept: f64) -> Measured {
        let quantities = [RATES.as_slice(), &[Quantity::ConnectTime]].concat();
        Measured {
            to_container: series(&RATES, [1.0, translated]),
            to_program: series(&quantities, [0.5, kept, 1.0]),
            others: 0.0,
        }
    }

    fn verdicts(comparisons: &[Comparison]) -> Vec<Option<Verdict>> {
        comparisons.iter().map(Comparison::verdict).collect()
    }

    #[test]
    fn each_quantity_has_its_own_limit() {
        let (holds, missed) = (Some(Verdict::Holds), Some(Verdict::Missed));
        let one = measured(2.5, 0.9);
        assert_eq!(verdicts(&one.translated_against_proxy()), [holds, missed, holds]);
        assert_eq!(verdicts(&one.kept_against_plain()), [missed, missed, holds, holds]);
        let other = measured(1.7, 1.4);
        assert_eq!(verdicts(&other.translated_against_proxy()), [holds, missed, missed]);
        assert_eq!(verdicts(&other.kept_against_plain()), [holds, holds, holds, missed]);
    }

    #[test]
    fn the_hairpin_is_shown_and_not_judged() {
        let comparisons = measured(2.0, 1.0).kept_against_hairpin();
        assert_eq!(verdicts(&comparisons), [None; 4]);
        assert!(comparisons.iter().all(|one| (one.ratio.median - 2.0).abs() < 1e-9), "{comparisons:?}");
    }
}
