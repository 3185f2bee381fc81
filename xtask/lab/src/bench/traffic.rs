//! Traffic from Windows to a container on three roads, in turns: by the nft remedy, steered, and direct.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wsl_mirror_lab::{Lab, nat};
use xtask::progress::Step;

use super::{
    cpu::Others,
    load::{Load, Ports, Rate},
    statistics::{Limit, Summary, Verdict},
};
use crate::status::Status;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Rounds: each road once.
    pub(super) rounds: u32,
    /// How long each measurement lasts.
    pub(super) time: Duration,
}

/// The program's answer to Docker's published ports, or the known one without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Road {
    /// An nftables rule before Docker's chain: a null DNAT.
    Remedy,
    /// To docker-proxy: the default.
    Steer,
    /// To the container: `path = "direct"`.
    Direct,
}

impl Road {
    /// In the order of a round. [`Road::Steer`] is in the middle, so that both comparisons are of neighbours.
    pub(super) const ALL: [Self; 3] = [Self::Remedy, Self::Steer, Self::Direct];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Remedy => "nft remedy",
            Self::Steer => "steer",
            Self::Direct => "direct",
        }
    }

    const fn configuration(self) -> &'static str {
        match self {
            Self::Direct => "path = \"direct\"\n",
            Self::Remedy | Self::Steer => "",
        }
    }

    fn set_up(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Steer | Self::Direct => {
                lab.guest()
                    .enter(|| std::fs::write("/etc/wsl-mirror.toml", self.configuration()))
                    .context("writing the configuration")?;
                lab.wsl_mirror(&["load"])?.success().map(drop)
            }
            Self::Remedy => [
                "add table ip remedy",
                "add chain ip remedy prerouting { type nat hook prerouting priority dstnat - 1; }",
                "add rule ip remedy prerouting iif loopback0 ip daddr 127.0.0.1 dnat to 127.0.0.1",
            ]
            .iter()
            .try_for_each(|line| lab.guest().run("nft", [line]).map(drop)),
        }
    }

    fn take_down(self, lab: &Lab) -> Result<()> {
        let own = match self {
            Self::Remedy => return lab.guest().run("nft", ["delete table ip remedy"]).map(drop),
            Self::Steer => "steer_established",
            Self::Direct => "direct_established",
        };
        let status = Status::read(lab)?;
        for reason in ["steer_established", "direct_established"] {
            let packets = status.packets(reason)?;
            ensure!(
                (packets > 0) == (reason == own),
                "{reason} counts {packets} packets: another road was measured"
            );
        }
        lab.wsl_mirror(&["unload"])?.success().map(drop)
    }

    /// One load on this road, which is there for it alone.
    fn measure(self, lab: &Lab, load: Load, ports: Ports, time: Duration) -> Result<Rate> {
        self.set_up(lab)?;
        nat::conntrack_flush(lab.guest())?;
        let rate = load.run(lab.windows(), ports, time).with_context(|| format!("with {}", self.name()))?;
        self.take_down(lab)?;
        Ok(rate)
    }
}

/// What a comparison is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantity {
    /// Of a load, per second.
    Rate(Load),
    /// CPU seconds for a byte of [`Load::Throughput`]: of client, container, everything between them, and the kernel.
    Cpu,
}

impl Quantity {
    pub(super) const ALL: [Self; 4] =
        [Self::Rate(Load::Throughput), Self::Rate(Load::KeepAlive), Self::Rate(Load::Connections), Self::Cpu];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate(load) => load.name(),
            Self::Cpu => "CPU seconds per GB",
        }
    }

    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Rate(Load::Throughput) => "GB/s",
            Self::Rate(Load::KeepAlive | Load::Connections) => "k/s",
            Self::Cpu => "s",
        }
    }

    /// For people, in its unit.
    pub(super) fn number(self, value: f64) -> String {
        match self {
            Self::Rate(Load::Throughput) => format!("{:.2}", value / 1e9),
            Self::Rate(Load::KeepAlive | Load::Connections) => format!("{:.1}", value / 1e3),
            Self::Cpu => format!("{:.2}", value * 1e9),
        }
    }

    fn of(self, rate: Rate) -> f64 {
        match self {
            Self::Rate(_) => rate.per_second,
            Self::Cpu => rate.cpu,
        }
    }

    const fn load(self) -> Load {
        match self {
            Self::Rate(load) => load,
            Self::Cpu => Load::Throughput,
        }
    }

    /// What `direct` shall be of `steer`.
    const fn direct_limit(self) -> Limit {
        match self {
            Self::Rate(Load::Throughput) => Limit::AtLeast(1.45),
            Self::Rate(Load::KeepAlive) => Limit::AtLeast(2.3),
            Self::Rate(Load::Connections) => Limit::AtLeast(1.6),
            Self::Cpu => Limit::AtMost(0.6),
        }
    }

    /// What `steer` shall be of the remedy.
    const fn steer_limit(self) -> Limit {
        match self {
            Self::Rate(_) => Limit::AtLeast(0.98),
            Self::Cpu => Limit::AtMost(1.02),
        }
    }
}

/// One road against another.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) quantity: Quantity,
    pub(super) road: Summary,
    pub(super) other: Summary,
    /// Of the road to the other, round by round.
    pub(super) ratio: Summary,
    pub(super) limit: Limit,
}

impl Comparison {
    pub(super) fn verdict(&self) -> Verdict {
        self.limit.verdict(self.ratio)
    }
}

/// All rounds of a load, each in the order of [`Road::ALL`].
type Rounds = Vec<[Rate; Road::ALL.len()]>;

/// What all roads came to.
pub(super) struct Measured {
    rounds: Vec<(Load, Rounds)>,
    /// The share of the CPUs that others had meanwhile.
    pub(super) others: f64,
}

impl Measured {
    /// A quantity's values on one road, round by round.
    fn values(&self, quantity: Quantity, road: Road) -> Vec<f64> {
        let rounds =
            self.rounds.iter().filter(|(load, _)| *load == quantity.load()).flat_map(|(_, rounds)| rounds);
        rounds.map(|round| quantity.of(round[road as usize])).collect()
    }

    /// A quantity on one road.
    pub(super) fn summary(&self, quantity: Quantity, road: Road) -> Summary {
        Summary::of(&self.values(quantity, road))
    }

    fn compare(&self, quantity: Quantity, road: Road, other: Road, limit: Limit) -> Comparison {
        let (values, others) = (self.values(quantity, road), self.values(quantity, other));
        let ratios: Vec<_> = values.iter().zip(&others).map(|(value, other)| value / other).collect();
        Comparison {
            quantity,
            road: Summary::of(&values),
            other: Summary::of(&others),
            ratio: Summary::of(&ratios),
            limit,
        }
    }

    /// `steer` against the nft remedy.
    pub(super) fn steer_against_remedy(&self) -> Vec<Comparison> {
        let compare =
            |quantity: Quantity| self.compare(quantity, Road::Steer, Road::Remedy, quantity.steer_limit());
        Quantity::ALL.into_iter().filter(|quantity| *quantity != Quantity::Cpu).map(compare).collect()
    }

    /// `direct` against `steer`.
    pub(super) fn direct_against_steer(&self) -> Vec<Comparison> {
        let compare =
            |quantity: Quantity| self.compare(quantity, Road::Direct, Road::Steer, quantity.direct_limit());
        Quantity::ALL.into_iter().map(compare).collect()
    }
}

/// Measures; wsl-mirror is not loaded.
pub(super) fn measure(lab: &Lab, ports: Ports, effort: Effort, progress: &Step) -> Result<Measured> {
    progress.set("warming up".to_owned());
    for load in Load::ALL {
        for road in Road::ALL {
            road.measure(lab, load, ports, effort.time)?;
        }
    }
    let others = Others::watch()?;
    let mut measured = Load::ALL.map(|load| (load, Vec::new()));
    for round in 0..effort.rounds {
        progress.set(format!("round {} of {}", round + 1, effort.rounds));
        for (load, rounds) in &mut measured {
            let mut order = Road::ALL;
            // A B C C B A: what drifts, drifts for all.
            if round % 2 == 1 {
                order.reverse();
            }
            let mut rates = [Rate::default(); Road::ALL.len()];
            for road in order {
                rates[road as usize] = road.measure(lab, *load, ports, effort.time)?;
            }
            rounds.push(rates);
        }
    }
    Ok(Measured { rounds: measured.into(), others: others.share()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machine becomes twice as fast; the ratios stay.
    fn measured(steer: f64, direct: f64) -> Measured {
        let round = |number: i32| {
            let speed = f64::from(100 + number * 7);
            [1.0, steer, direct].map(|factor| Rate { per_second: speed * factor, cpu: 1.0 / factor / speed })
        };
        Measured { rounds: Load::ALL.map(|load| (load, (0..16).map(round).collect())).into(), others: 0.0 }
    }

    fn of(comparisons: &[Comparison], quantity: Quantity) -> &Comparison {
        comparisons.iter().find(|one| one.quantity == quantity).unwrap_or_else(|| panic!("{quantity:?}"))
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let comparisons = measured(0.98, 1.96).steer_against_remedy();
        let comparison = of(&comparisons, Quantity::Rate(Load::KeepAlive));
        assert!((comparison.ratio.median - 0.98).abs() < 1e-9);
        assert!(comparison.ratio.interval.is_some_and(|(low, high)| high - low < 1e-9));
        assert_eq!(comparison.verdict(), Verdict::Holds);
        let slower = measured(0.95, 1.9).steer_against_remedy();
        assert!(slower.iter().all(|one| one.verdict() == Verdict::Missed), "{slower:?}");
    }

    #[test]
    fn direct_is_compared_with_steer() {
        let comparisons = measured(0.5, 1.0).direct_against_steer();
        for quantity in Quantity::ALL {
            let comparison = of(&comparisons, quantity);
            let (ratio, verdict) = match quantity {
                Quantity::Rate(Load::KeepAlive) => (2.0, Verdict::Missed),
                Quantity::Rate(_) => (2.0, Verdict::Holds),
                Quantity::Cpu => (0.5, Verdict::Holds),
            };
            assert!((comparison.ratio.median - ratio).abs() < 1e-9, "{comparison:?}");
            assert_eq!(comparison.verdict(), verdict, "{comparison:?}");
        }
    }
}
