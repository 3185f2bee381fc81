//! Traffic from Windows to a container on three roads, in turns: by the nft remedy, steered, and direct.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wsl_mirror_lab::{Lab, nat};
use xtask::progress::Step;

use super::{
    comparison::{Comparison, Quantity},
    cpu::Others,
    load::{Load, Ports, Rate},
    statistics::{Limit, Summary},
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

/// What the roads from Windows are compared by.
pub(super) const QUANTITIES: [Quantity; 4] = [
    Quantity::Rate(Load::Throughput),
    Quantity::Rate(Load::KeepAlive),
    Quantity::Rate(Load::Connections),
    Quantity::Cpu,
];

/// The load by which a quantity is measured.
const fn load(quantity: Quantity) -> Load {
    match quantity {
        Quantity::Rate(load) => load,
        Quantity::Cpu | Quantity::ConnectTime => Load::Throughput,
    }
}

/// What `direct` shall be of `steer`.
const fn direct_limit(quantity: Quantity) -> Option<Limit> {
    match quantity {
        Quantity::Rate(Load::Throughput) => Some(Limit::AtLeast(1.45)),
        Quantity::Rate(Load::KeepAlive) => Some(Limit::AtLeast(2.3)),
        Quantity::Rate(Load::Connections) => Some(Limit::AtLeast(1.6)),
        Quantity::Cpu => Some(Limit::AtMost(0.6)),
        Quantity::ConnectTime => None,
    }
}

/// What `steer` shall be of the remedy.
const fn steer_limit(quantity: Quantity) -> Option<Limit> {
    match quantity {
        Quantity::Rate(_) => Some(Limit::AtLeast(0.98)),
        Quantity::Cpu | Quantity::ConnectTime => None,
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
        let rounds = self
            .rounds
            .iter()
            .filter(|(measured, _)| *measured == load(quantity))
            .flat_map(|(_, rounds)| rounds);
        rounds
            .map(|round| match quantity {
                Quantity::Cpu => round[road as usize].cpu,
                Quantity::Rate(_) | Quantity::ConnectTime => round[road as usize].per_second,
            })
            .collect()
    }

    /// A quantity on one road.
    pub(super) fn summary(&self, quantity: Quantity, road: Road) -> Summary {
        Summary::of(&self.values(quantity, road))
    }

    fn compare(&self, quantity: Quantity, road: Road, other: Road, limit: Option<Limit>) -> Comparison {
        Comparison::of(quantity, &self.values(quantity, road), &self.values(quantity, other), limit)
    }

    /// `steer` against the nft remedy.
    pub(super) fn steer_against_remedy(&self) -> Vec<Comparison> {
        let compare =
            |quantity: Quantity| self.compare(quantity, Road::Steer, Road::Remedy, steer_limit(quantity));
        QUANTITIES.into_iter().filter(|quantity| *quantity != Quantity::Cpu).map(compare).collect()
    }

    /// `direct` against `steer`.
    pub(super) fn direct_against_steer(&self) -> Vec<Comparison> {
        let compare =
            |quantity: Quantity| self.compare(quantity, Road::Direct, Road::Steer, direct_limit(quantity));
        QUANTITIES.into_iter().map(compare).collect()
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
    use super::{super::statistics::Verdict, *};

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
        assert_eq!(comparison.verdict(), Some(Verdict::Holds));
        let slower = measured(0.95, 1.9).steer_against_remedy();
        assert!(slower.iter().all(|one| one.verdict() == Some(Verdict::Missed)), "{slower:?}");
    }

    #[test]
    fn direct_is_compared_with_steer() {
        let comparisons = measured(0.5, 1.0).direct_against_steer();
        for quantity in QUANTITIES {
            let comparison = of(&comparisons, quantity);
            let (ratio, verdict) = match quantity {
                Quantity::Rate(Load::KeepAlive) => (2.0, Verdict::Missed),
                Quantity::Rate(_) => (2.0, Verdict::Holds),
                Quantity::Cpu | Quantity::ConnectTime => (0.5, Verdict::Holds),
            };
            assert!((comparison.ratio.median - ratio).abs() < 1e-9, "{comparison:?}");
            assert_eq!(comparison.verdict(), Some(verdict), "{comparison:?}");
        }
    }
}
