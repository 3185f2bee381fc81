//! Against the known remedy, an nft rule that does a null DNAT before Docker's: the same traffic, in turns.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wsl_mirror_lab::{Lab, nat};

use super::{
    load::{Load, Ports},
    statistics::{Limit, Summary, Verdict},
};
use xtask::progress::Step;

use crate::status::Status;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Pairs of neighbouring measurements.
    pub(super) pairs: u32,
    /// How long each measurement lasts.
    pub(super) time: Duration,
}

/// The least that is to be left of the remedy's rate.
pub(super) const LIMIT: Limit = Limit::AtLeast(0.98);

/// What a load came to.
pub(super) struct Comparison {
    pub(super) load: Load,
    /// Rates per second.
    pub(super) ours: Summary,
    pub(super) remedy: Summary,
    /// Ours to the remedy's, pair by pair.
    pub(super) ratio: Summary,
}

impl Comparison {
    fn of(load: Load, pairs: &[(f64, f64)]) -> Self {
        let (ours, remedy): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
        let ratios: Vec<_> = pairs.iter().map(|(ours, remedy)| ours / remedy).collect();
        Self { load, ours: Summary::of(&ours), remedy: Summary::of(&remedy), ratio: Summary::of(&ratios) }
    }

    pub(super) fn verdict(&self) -> Verdict {
        LIMIT.verdict(self.ratio)
    }
}

/// What makes Docker's published ports answer on Windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Ours,
    Remedy,
}

impl Variant {
    fn set_up(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Ours => lab.wsl_mirror(&["load"])?.success().map(drop),
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
        match self {
            Self::Ours => {
                let status = Status::read(lab)?;
                ensure!(
                    status.packets("steer_established")? > 0,
                    "nothing was steered: another road was measured"
                );
                lab.wsl_mirror(&["unload"])?.success().map(drop)
            }
            Self::Remedy => lab.guest().run("nft", ["delete table ip remedy"]).map(drop),
        }
    }

    /// One load on this road, which is there for it alone.
    fn measure(self, lab: &Lab, load: Load, ports: Ports, time: Duration) -> Result<f64> {
        self.set_up(lab)?;
        nat::conntrack_flush(lab.guest())?;
        let rate = load.run(lab.windows(), ports, time).with_context(|| format!("with {self:?}"))?;
        self.take_down(lab)?;
        Ok(rate)
    }
}

/// Measures; wsl-mirror is not loaded.
pub(super) fn measure(lab: &Lab, ports: Ports, effort: Effort, progress: &Step) -> Result<Vec<Comparison>> {
    progress.set("warming up".to_owned());
    for load in Load::ALL {
        for variant in [Variant::Ours, Variant::Remedy] {
            variant.measure(lab, load, ports, effort.time)?;
        }
    }
    let mut measured = Load::ALL.map(|load| (load, Vec::new()));
    for pair in 0..effort.pairs {
        progress.set(format!("pair {} of {}", pair + 1, effort.pairs));
        for (load, pairs) in &mut measured {
            let measure = |variant: Variant| variant.measure(lab, *load, ports, effort.time);
            // A B B A: what drifts, drifts for both.
            let (ours, remedy);
            if pair % 2 == 0 {
                ours = measure(Variant::Ours)?;
                remedy = measure(Variant::Remedy)?;
            } else {
                remedy = measure(Variant::Remedy)?;
                ours = measure(Variant::Ours)?;
            }
            pairs.push((ours, remedy));
        }
    }
    Ok(measured.into_iter().map(|(load, pairs)| Comparison::of(load, &pairs)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The machine becomes twice as fast; ours stays at 98 % of the remedy.
        let pairs: Vec<_> =
            (0..16).map(|pair| f64::from(100 + pair * 7)).map(|rate| (rate * 0.98, rate)).collect();
        let comparison = Comparison::of(Load::KeepAlive, &pairs);
        assert!((comparison.ratio.median - 0.98).abs() < 1e-9);
        assert!(comparison.ratio.interval.is_some_and(|(low, high)| high - low < 1e-9));
        assert_eq!(comparison.verdict(), Verdict::Holds);
        let slower: Vec<_> = pairs.iter().map(|(ours, remedy)| (ours * 0.95, *remedy)).collect();
        assert_eq!(Comparison::of(Load::KeepAlive, &slower).verdict(), Verdict::Missed);
    }
}
