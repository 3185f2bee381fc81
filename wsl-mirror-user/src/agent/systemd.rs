//! Messages to systemd, if it has started us (`Type=notify`): readiness, status, watchdog.

use std::time::{Duration, Instant};

use sd_notify::{NotifyState, notify, watchdog_enabled};

use super::report::Report;

/// The interval without a watchdog.
const NEVER: Duration = Duration::from_hours(24);

/// The conversation with systemd, if it has started us.
#[derive(Debug)]
pub struct Systemd {
    /// Half of what its watchdog allows.
    interval: Option<Duration>,
    last: Instant,
    is_reloading: bool,
}

impl Default for Systemd {
    fn default() -> Self {
        let mut microseconds = 0;
        let interval =
            watchdog_enabled(false, &mut microseconds).then(|| Duration::from_micros(microseconds / 2));
        Self { interval, last: Instant::now(), is_reloading: false }
    }
}

/// Sends messages. A systemd that does not listen is no reason to end.
fn send(states: &[NotifyState<'_>]) {
    let _ = notify(false, states);
}

/// Whether systemd has started us.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The first round is done.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The line of `systemctl status`.
pub fn status(report: &Report) {
    let line = match &report.config_error {
        Some(error) => format!("{}; {error}", report.says),
        None => report.says.clone(),
    };
    // The protocol has a line for each field.
    send(&[NotifyState::Status(&line.replace('\n', " "))]);
}

/// We end.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

impl Systemd {
    /// The configuration is read again.
    pub fn reloading(&mut self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            send(&[NotifyState::Reloading, now]);
            self.is_reloading = true;
        }
    }

    /// A round has come to its end.
    pub fn reloaded(&mut self) {
        if std::mem::take(&mut self.is_reloading) {
            send(&[NotifyState::Ready]);
        }
    }

    /// When we have to say that we are alive.
    pub fn next_sign_of_life(&self) -> Instant {
        self.last + self.interval.unwrap_or(NEVER)
    }

    /// Says it, if it is time. While a round does not come to its end, nobody does.
    pub fn sign_of_life(&mut self) {
        let now = Instant::now();
        if now >= self.next_sign_of_life() {
            self.last = now;
            send(&[NotifyState::Watchdog]);
        }
    }
}
