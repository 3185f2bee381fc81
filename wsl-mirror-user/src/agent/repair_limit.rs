//! How often repairs are made while somebody else undoes them.

use std::time::{Duration, Instant};

use super::changes::Repairs;

/// So many repairs within [`WINDOW`] are made at once.
pub const BURST: usize = 10;
/// The limit is lifted once nothing was repaired for so long.
pub const WINDOW: Duration = Duration::from_secs(10);
/// From then on, one repair in so long.
pub const PAUSE: Duration = Duration::from_secs(5);

/// The repairs of the last [`WINDOW`], and when the next one is allowed.
#[derive(Debug, Default)]
pub struct RepairLimit {
    recent: Vec<Instant>,
    pause_end: Option<Instant>,
}

impl RepairLimit {
    /// Whether a repair is allowed now.
    pub fn repairs(&self, now: Instant) -> Repairs {
        match self.pause_end {
            Some(end) if now < end => Repairs::HeldBack,
            _ => Repairs::Allowed,
        }
    }

    /// When the next repair is allowed, if there is a limit.
    pub const fn pause_end(&self) -> Option<Instant> {
        self.pause_end
    }

    /// A round has come to its end without a repair.
    pub fn forget_old(&mut self, now: Instant) {
        self.recent.retain(|repair| *repair + WINDOW > now);
    }

    /// A repair was made.
    pub fn note_repair(&mut self, now: Instant) {
        self.forget_old(now);
        // A repair after a pause keeps the limit up, if somebody has undone the one before within the window.
        let is_limited = self.pause_end.is_some() && !self.recent.is_empty();
        self.recent.push(now);
        self.pause_end = (is_limited || self.recent.len() >= BURST).then_some(now + PAUSE);
    }
}
