//! The one wait loop: it polls a condition until the condition holds or the time is up.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Result;

/// The pause between two attempts. What the loader waits for takes some 20 ms (see `loader::tcx::wait_until_off`).
const INTERVAL: Duration = Duration::from_millis(2);

/// Repeats `attempt` until it gives a value or fails. `None` after `limit`.
pub fn poll<T>(limit: Duration, attempt: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let mut wait = Wait::begin(limit, attempt);
    loop {
        match wait.next()? {
            ControlFlow::Break(end) => return Ok(end),
            ControlFlow::Continue(pause) => std::thread::sleep(pause),
        }
    }
}

/// [`poll`] for async callers. Dropping the future ends the wait.
pub async fn poll_async<T>(limit: Duration, attempt: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let mut wait = Wait::begin(limit, attempt);
    loop {
        match wait.next()? {
            ControlFlow::Break(end) => return Ok(end),
            ControlFlow::Continue(pause) => tokio::time::sleep(pause).await,
        }
    }
}

/// A wait, whichever way its caller pauses.
struct Wait<F> {
    start: Instant,
    limit: Duration,
    attempt: F,
}

impl<T, F: FnMut() -> Result<Option<T>>> Wait<F> {
    fn begin(limit: Duration, attempt: F) -> Self {
        Self { start: Instant::now(), limit, attempt }
    }

    /// Makes an attempt. The wait ends with its value, or without one after the limit; else a pause follows.
    fn next(&mut self) -> Result<ControlFlow<Option<T>, Duration>> {
        let value = (self.attempt)()?;
        Ok(match value {
            None if self.start.elapsed() <= self.limit => ControlFlow::Continue(INTERVAL),
            end => ControlFlow::Break(end),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_ends_with_a_value_an_error_or_the_limit() {
        let mut attempts = 0;
        let third = poll(Duration::from_secs(9), || {
            attempts += 1;
            Ok((attempts == 3).then_some(attempts))
        });
        assert_eq!(third.unwrap(), Some(3));
        assert!(poll::<u8>(Duration::from_secs(9), || anyhow::bail!("no")).is_err());
        assert_eq!(poll::<u8>(Duration::ZERO, || Ok(None)).unwrap(), None);
    }
}
