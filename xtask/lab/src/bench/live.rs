//! What the programs cost in live traffic, by the kernel's own count of their runs and nanoseconds.
//!
//! A reply of a carried flow cannot be measured otherwise: it needs the entry that conntrack has noted in the packet.
//! An empty program hangs on the same hook and runs for the same packets: what counting costs is in both numbers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wsl_mirror_lab::Lab;
use xtask::progress::Step;

use super::{
    bpf::{Direction, Link, Program, Statistics},
    load::{Load, Ports},
    packets::{loopback0, ours},
    statistics::{Limit, Summary, Verdict},
};

/// What a carried packet may cost more than the empty program, in nanoseconds.
pub(super) const LIMIT: Limit = Limit::AtMost(200.0);

/// Nanoseconds per packet of one direction.
pub(super) struct Cost {
    pub(super) direction: Direction,
    pub(super) empty: Summary,
    pub(super) ours: Summary,
    /// Of the differences in each round.
    pub(super) over: Summary,
}

impl Cost {
    pub(super) fn verdict(&self) -> Verdict {
        LIMIT.verdict(self.over)
    }
}

/// Our program and an empty one on the same hook.
pub(super) struct Pair {
    ours: Program,
    empty: Program,
    _link: Link,
}

impl Pair {
    /// Attaches the empty program beside ours.
    pub(super) fn attach(lab: &Lab, direction: Direction) -> Result<Self> {
        lab.guest().enter(|| {
            let empty = Program::empty()?;
            let link = empty.attach(loopback0()?, direction)?;
            Ok(Self { ours: ours(direction)?, empty, _link: link })
        })
    }

    /// Nanoseconds of each run while `work` is done: of the empty program and of ours.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(f64, f64, T)> {
        let before = (self.empty.runs()?, self.ours.runs()?);
        let done = work()?;
        let of_empty = self.empty.runs()?.each_since(before.0).context("the empty program never ran")?;
        let of_ours = self.ours.runs()?.each_since(before.1).context("the program never ran")?;
        Ok((of_empty, of_ours, done))
    }
}

/// Measures in traffic over connections that stay open; wsl-mirror is loaded.
pub(super) fn measure(
    lab: &Lab,
    ports: Ports,
    rounds: u32,
    time: Duration,
    progress: &Step,
) -> Result<Vec<Cost>> {
    let _statistics = Statistics::enable()?;
    let directions = [Direction::Ingress, Direction::Egress];
    let mut costs = Vec::new();
    for direction in directions {
        let pair = Pair::attach(lab, direction)?;
        let (mut empty, mut ours) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            progress.set(format!("{direction:?}: round {} of {rounds}", round + 1));
            let (of_empty, of_ours, rate) =
                pair.during(|| Load::KeepAlive.run(lab.windows(), ports, time))?;
            ensure!(rate.per_second > 0.0, "no request was answered");
            empty.push(of_empty);
            ours.push(of_ours);
        }
        let over: Vec<f64> = ours.iter().zip(&empty).map(|(ours, empty)| ours - empty).collect();
        costs.push(Cost {
            direction,
            empty: Summary::of(&empty),
            ours: Summary::of(&ours),
            over: Summary::of(&over),
        });
    }
    Ok(costs)
}
