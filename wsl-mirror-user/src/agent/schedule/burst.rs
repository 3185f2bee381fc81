//! Changes that come in bursts.

use std::time::{Duration, Instant};

/// How long a burst is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Nothing more has come for so long.
    pub quiet: Duration,
    /// No longer than this after the first change.
    pub limit: Duration,
}

/// A look that waits for quiet.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    first: Instant,
    last: Instant,
}

impl Burst {
    /// A burst that is over for so long.
    pub fn ended(now: Instant, quiet: Duration) -> Self {
        Self { first: now, last: now.checked_sub(quiet).unwrap_or(now) }
    }

    /// Adds a change to a burst, or begins one.
    pub fn note(burst: &mut Option<Self>, now: Instant) {
        let first = burst.map_or(now, |burst| burst.first);
        *burst = Some(Self { first, last: now });
    }

    /// When the last change came.
    pub const fn last(self) -> Instant {
        self.last
    }

    /// When the look is due.
    pub fn due(self, wait: Wait) -> Instant {
        (self.last + wait.quiet).min(self.first + wait.limit)
    }
}
