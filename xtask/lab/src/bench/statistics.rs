//! Medians and how sure they are. Pure.

use std::fmt;

/// The middle of a series, how sure it is, and the ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    /// Holds the true median with [`CONFIDENCE`]; none of fewer than 6 values.
    pub(super) interval: Option<(f64, f64)>,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// Of at least one value.
    pub(super) fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        Self {
            median: median_of_sorted(&sorted),
            interval: median_interval(&sorted),
            min: sorted.first().copied().unwrap_or(f64::NAN),
            max: sorted.last().copied().unwrap_or(f64::NAN),
        }
    }
}

/// A limit for a median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// At least the first, at most the second.
    Between(f64, f64),
}

impl Limit {
    /// The limit holds if the interval of the median reaches it.
    pub(super) fn verdict(self, measured: Summary) -> Verdict {
        let (low, high) = measured.interval.unwrap_or((measured.median, measured.median));
        let holds = match self {
            Self::AtMost(limit) => low <= limit,
            Self::AtLeast(limit) => high >= limit,
            Self::Between(least, most) => high >= least && low <= most,
        };
        if holds { Verdict::Holds } else { Verdict::Missed }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
            Self::Between(least, most) => write!(f, "{least} to {most}"),
        }
    }
}

/// A median against its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Holds,
    Missed,
}

/// An interval that holds the true median with at least this much confidence.
pub(super) const CONFIDENCE: f64 = 0.95;

/// The confidence interval of a median by order statistics: it assumes nothing about how the values are
/// distributed, and needs no random numbers. None if there are too few values for any (fewer than 6).
///
/// The k-th smallest of n values lies above the true median with the probability that fewer than k of n
/// tosses of a coin show heads; so does, by symmetry, the k-th largest below it.
pub(super) fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let n = u32::try_from(sorted.len()).ok()?;
    // P(heads = 0), then P(heads = 1), …
    let mut exactly = 0.5_f64.powi(n.cast_signed());
    let (mut fewer, mut k) = (0.0, 0_u32);
    while fewer + exactly <= tail {
        fewer += exactly;
        k += 1;
        exactly *= f64::from(n - k + 1) / f64::from(k);
    }
    let low = usize::try_from(k.checked_sub(1)?).ok()?;
    Some((sorted[low], sorted[sorted.len() - 1 - low]))
}

/// The median alone, of any number of values. [`median_interval`] is for hundreds: of thousands its first probability is 0.
pub(super) fn median(values: &[f64]) -> f64 {
    median_of_sorted(&sorted(values))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median_of_sorted(sorted: &[f64]) -> f64 {
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => f64::NAN,
        (middle, 1) => sorted[middle],
        (middle, _) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_to(n: u32) -> Vec<f64> {
        // Not in order: each function has to sort.
        (1..=n).rev().map(f64::from).collect()
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let ends = |summary: Summary| (summary.median, summary.min, summary.max);
        assert_eq!(ends(Summary::of(&up_to(5))), (3.0, 1.0, 5.0));
        assert_eq!(ends(Summary::of(&up_to(4))), (2.5, 1.0, 4.0));
        assert!(Summary::of(&[]).median.is_nan());
    }

    /// The ranks that tables of the sign test give for 95 %.
    #[test]
    fn the_interval_has_the_ranks_of_the_textbook() {
        for (n, low, high) in
            [(6, 1, 6), (8, 1, 8), (9, 2, 8), (15, 4, 12), (21, 6, 16), (31, 10, 22), (40, 14, 27)]
        {
            assert_eq!(median_interval(&up_to(n)), Some((f64::from(low), f64::from(high))), "{n} values");
        }
    }

    #[test]
    fn a_limit_holds_if_the_interval_reaches_it() {
        // 15 values from 1 on: the interval is 4 to 12.
        let measured = Summary::of(&up_to(15));
        for (limit, verdict) in [
            (Limit::AtMost(4.0), Verdict::Holds),
            (Limit::AtMost(3.9), Verdict::Missed),
            (Limit::AtLeast(12.0), Verdict::Holds),
            (Limit::AtLeast(12.1), Verdict::Missed),
            (Limit::Between(1.0, 4.0), Verdict::Holds),
            (Limit::Between(12.0, 20.0), Verdict::Holds),
            (Limit::Between(1.0, 3.0), Verdict::Missed),
            (Limit::Between(13.0, 20.0), Verdict::Missed),
        ] {
            assert_eq!(limit.verdict(measured), verdict, "{limit}");
        }
        let few = Summary::of(&[1.0, 2.0, 3.0]);
        assert_eq!(Limit::AtMost(1.9).verdict(few), Verdict::Missed, "without an interval the median counts");
    }

    #[test]
    fn the_median_alone_is_of_any_number_of_values() {
        assert!((median(&up_to(100_000)) - 50_000.5).abs() < 1e-9);
    }

    #[test]
    fn five_values_are_too_few_for_an_interval() {
        for n in 0..=5 {
            assert_eq!(median_interval(&up_to(n)), None, "{n} values");
        }
    }

    /// Of series drawn from a skewed distribution, the interval holds the true median as often as it says.
    #[test]
    fn the_interval_covers_the_median_as_often_as_it_says() {
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(state >> 33).unwrap_or_default()) / f64::from(1_u32 << 31)
        };
        let trials = 4000;
        let mut held = 0;
        for _ in 0..trials {
            let series: Vec<f64> = (0..15).map(|_| uniform().powi(3)).collect();
            let (low, high) = median_interval(&series).unwrap_or((f64::NAN, f64::NAN));
            held += i32::from((low..=high).contains(&0.125));
        }
        let share = f64::from(held) / f64::from(trials);
        assert!((0.95..0.985).contains(&share), "{share}");
    }
}
