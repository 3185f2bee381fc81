//! How much time may be spent on something: at once for a while, then a share of the time that passes.

use std::time::{Duration, Instant};

/// A budget of time.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// What may be spent at once after a rest.
    burst: Duration,
    /// One part in so many of the time that passes.
    share: u32,
    /// When all that was spent is earned again.
    earned: Instant,
}

impl Budget {
    /// A full budget.
    pub const fn new(burst: Duration, share: u32, now: Instant) -> Self {
        Self { burst, share, earned: now }
    }

    /// Spends time. What takes longer than what is left is owed.
    pub fn spend(&mut self, took: Duration, now: Instant) {
        self.earned = self.earned.max(now) + took * self.share;
    }

    /// When something may be spent again.
    pub fn free(&self, now: Instant) -> Instant {
        self.earned.checked_sub(self.burst * self.share).map_or(now, |free| free.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_budget_is_spent_at_once_and_then_earned() {
        let now = Instant::now();
        let mut budget = Budget::new(100 * MILLISECOND, 10, now);
        for _ in 0..10 {
            assert_eq!(budget.free(now), now);
            budget.spend(10 * MILLISECOND, now);
        }
        assert_eq!(budget.free(now), now, "spent to the last bit, and nothing is owed");
        budget.spend(10 * MILLISECOND, now);
        assert_eq!(budget.free(now), now + 100 * MILLISECOND);
        let later = now + Duration::from_secs(5);
        assert_eq!(budget.free(later), later);
        budget.spend(99 * MILLISECOND, later);
        assert_eq!(budget.free(later), later, "full again");
    }

    #[test]
    fn a_storm_gets_its_share_of_the_time() {
        let start = Instant::now();
        let (mut budget, mut now, mut spent) =
            (Budget::new(50 * MILLISECOND, 12, start), start, Duration::ZERO);
        while now < start + Duration::from_mins(1) {
            now = budget.free(now);
            budget.spend(7 * MILLISECOND, now);
            spent += 7 * MILLISECOND;
            now += 7 * MILLISECOND;
        }
        let few = Duration::from_millis(4900)..=Duration::from_millis(5100);
        assert!(few.contains(&spent), "{spent:?}");
    }
}
