//! The one wait loop: it polls a condition until the condition holds or the time is up.

use std::time::{Duration, Instant};

use anyhow::Result;

/// The pause between two attempts. What the loader waits for takes some 20 ms (see `loader::hook`).
const INTERVAL: Duration = Duration::from_millis(2);

/// Repeats `attempt` until it gives a value or fails. `None` after `limit`.
pub fn poll<T>(limit: Duration, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt()? {
            return Ok(Some(value));
        }
        if start.elapsed() > limit {
            return Ok(None);
        }
        std::thread::sleep(INTERVAL);
    }
}

/// [`poll`] for async callers. Dropping the future ends the wait.
pub async fn poll_async<T>(
    limit: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt()? {
            return Ok(Some(value));
        }
        if start.elapsed() > limit {
            return Ok(None);
        }
        tokio::time::sleep(INTERVAL).await;
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
