//! The measurements as tables.

use xtask::table::{self, Cell, GOOD, WRONG};

use super::{
    bpf::Direction,
    comparison::Comparison,
    connects, live, packets, scale,
    statistics::{Summary, Verdict},
};

/// Whether limits are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judging {
    On,
    /// A few short runs mean nothing.
    Off,
}

impl Judging {
    fn verdict(self, verdict: Verdict) -> Cell {
        match (self, verdict) {
            (Self::Off, _) => "not judged".into(),
            (Self::On, Verdict::Holds) => Cell::new("holds", GOOD),
            (Self::On, Verdict::Missed) => Cell::new("MISSED", WRONG),
        }
    }

    pub(super) fn costs(self, costs: &[packets::Cost]) -> String {
        let rows: Vec<_> = costs
            .iter()
            .map(|cost| {
                [
                    cost.packet.name.into(),
                    side(cost.packet.direction).into(),
                    format!("{:.1}", cost.empty.median).into(),
                    format!("{:.1}", cost.ours.median).into(),
                    format!("{:.1}", cost.over.median).into(),
                    interval(cost.over, 1).into(),
                    cost.packet.limit.to_string().into(),
                    self.verdict(cost.verdict()),
                ]
            })
            .collect();
        table::styled(
            ["packet", "program", "empty", "wsl-mirror", "more than empty", "interval", "limit", ""],
            &rows,
        )
    }

    pub(super) fn live(self, costs: &[live::Cost]) -> String {
        let rows: Vec<_> = costs
            .iter()
            .map(|cost| {
                [
                    side(cost.direction).into(),
                    format!("{:.1}", cost.empty.median).into(),
                    format!("{:.1}", cost.ours.median).into(),
                    format!("{:.1}", cost.over.median).into(),
                    interval(cost.over, 1).into(),
                    live::LIMIT.to_string().into(),
                    self.verdict(cost.verdict()),
                ]
            })
            .collect();
        table::styled(["program", "empty", "wsl-mirror", "more than empty", "interval", "limit", ""], &rows)
    }

    /// One road against another, both by name.
    pub(super) fn roads(self, road: &str, other: &str, comparisons: &[Comparison]) -> String {
        let rows: Vec<_> = comparisons
            .iter()
            .map(|comparison| {
                let quantity = comparison.quantity;
                let show = |value: f64| format!("{} {}", quantity.number(value), quantity.unit());
                [
                    quantity.name().into(),
                    show(comparison.other.median).into(),
                    show(comparison.road.median).into(),
                    format!("{:.3}", comparison.ratio.median).into(),
                    interval(comparison.ratio, 3).into(),
                    format!("{:.2} to {:.2}", comparison.ratio.min, comparison.ratio.max).into(),
                    comparison.limit.map_or_else(String::new, |limit| limit.to_string()).into(),
                    comparison.verdict().map_or_else(|| "".into(), |verdict| self.verdict(verdict)),
                ]
            })
            .collect();
        table::styled(["traffic", other, road, "ratio", "interval", "min to max", "limit", ""], &rows)
    }

    pub(super) fn connects(self, costs: &[connects::Cost]) -> String {
        let rows: Vec<_> = costs
            .iter()
            .map(|cost| {
                [
                    cost.what.into(),
                    format!("{:.0}", cost.without.median).into(),
                    format!("{:.0}", cost.with.median).into(),
                    format!("{:.0}", cost.over.median).into(),
                    interval(cost.over, 0).into(),
                    format!("{:.3}", cost.ratio.median).into(),
                    cost.limit.map_or_else(String::new, |limit| limit.to_string()).into(),
                    cost.verdict().map_or_else(|| "".into(), |verdict| self.verdict(verdict)),
                ]
            })
            .collect();
        table::styled(["call", "without", "with", "more", "interval", "ratio", "limit of more", ""], &rows)
    }

    pub(super) fn scale(self, comparisons: &[scale::Comparison]) -> String {
        let rows: Vec<_> = comparisons
            .iter()
            .map(|comparison| {
                let (limit, verdict) = if comparison.is_judged {
                    (scale::LIMIT.to_string(), self.verdict(comparison.verdict()))
                } else {
                    (String::new(), "".into())
                };
                [
                    comparison.what.into(),
                    format!("{:.0}", comparison.few.median).into(),
                    format!("{:.0}", comparison.many.median).into(),
                    format!("{:.3}", comparison.ratio.median).into(),
                    interval(comparison.ratio, 3).into(),
                    limit.into(),
                    verdict,
                ]
            })
            .collect();
        table::styled(["", "few", "many", "ratio", "interval", "limit", ""], &rows)
    }
}

fn side(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn interval(summary: Summary, decimals: usize) -> String {
    summary.interval.map_or_else(
        || "too few rounds".to_owned(),
        |(low, high)| format!("{low:.decimals$} to {high:.decimals$}"),
    )
}
