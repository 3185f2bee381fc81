//! What roads are compared by, and one road against another.

use super::{
    load::Load,
    statistics::{Limit, Summary, Verdict},
};

/// What a comparison is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantity {
    /// Of a load, per second.
    Rate(Load),
    /// CPU seconds for a byte of [`Load::Throughput`]: of client, container, everything between them, and the kernel.
    Cpu,
    /// Seconds that connect(2) takes, at the median of one measurement.
    ConnectTime,
}

impl Quantity {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate(load) => load.name(),
            Self::Cpu => "CPU seconds per GB",
            Self::ConnectTime => "connect, median",
        }
    }

    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Rate(Load::Throughput) => "GB/s",
            Self::Rate(Load::KeepAlive | Load::Connections) => "k/s",
            Self::Cpu => "s",
            Self::ConnectTime => "µs",
        }
    }

    /// For people, in its unit.
    pub(super) fn number(self, value: f64) -> String {
        match self {
            Self::Rate(Load::Throughput) => format!("{:.2}", value / 1e9),
            Self::Rate(Load::KeepAlive | Load::Connections) => format!("{:.1}", value / 1e3),
            Self::Cpu => format!("{:.2}", value * 1e9),
            Self::ConnectTime => format!("{:.1}", value * 1e6),
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
    /// None if the ratio is shown and not judged.
    pub(super) limit: Option<Limit>,
}

impl Comparison {
    /// Of the values of both roads, round by round.
    pub(super) fn of(quantity: Quantity, values: &[f64], others: &[f64], limit: Option<Limit>) -> Self {
        let ratios: Vec<_> = values.iter().zip(others).map(|(value, other)| value / other).collect();
        Self {
            quantity,
            road: Summary::of(values),
            other: Summary::of(others),
            ratio: Summary::of(&ratios),
            limit,
        }
    }

    /// None without a limit.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.limit.map(|limit| limit.verdict(self.ratio))
    }
}
