//! Ports are released when their last socket is gone.
//!
//! WSL's tracker (`GnsPortTracker.cpp`) lists the guest's sockets every 500 ms. It releases a port that it has seen
//! before and does not see any more. A port that it has never seen it gives up 60 s after the bind: TCP sockets that
//! are bound and do not listen are shown from Linux 6.8 on only. Accepted connections and `TIME_WAIT` hold the port
//! too, by protocol and port (WSL#40287).

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};

use super::{
    ghosts::Ghosts,
    object::Object,
    options::WindowsOptions,
    sockets::{Diagnosis, Holding},
    transport::port_text,
};
use crate::Namespace;

/// How often the tracker lists the sockets (`c_sock_diag_refresh_delay`).
const REFRESH: Duration = Duration::from_millis(500);

/// The thread that releases ports; it ends with this value.
#[derive(Debug)]
pub(super) struct Tracker {
    requests: Option<Sender<Sender<Result<()>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Tracker {
    pub(super) fn start(
        object: Arc<Object>,
        guest: &Namespace,
        windows: &Namespace,
        options: &WindowsOptions,
    ) -> Result<Self> {
        let diagnosis = Diagnosis::open(guest).context("asking for the guest's sockets")?;
        let ghosts = options.ghosts.then(|| Ghosts::new(windows));
        let (requests, received) = mpsc::channel();
        let give_up = options.give_up;
        let mut ports = Ports { object, diagnosis, give_up, seen: BTreeSet::new() };
        let thread = thread::Builder::new()
            .name("port tracker".to_owned())
            .spawn(move || ports.run(&received, ghosts))
            .context("starting the port tracker")?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Releases at once all ports that no living socket holds, without a ghost.
    pub(super) fn settle(&self) -> Result<()> {
        let (answer, answered) = mpsc::channel();
        let requests = self.requests.as_ref().context("the port tracker has ended")?;
        requests.send(answer).ok().context("the port tracker has ended")?;
        answered.recv().context("the port tracker has ended")?
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Ports {
    object: Arc<Object>,
    diagnosis: Diagnosis,
    /// When a port that `sock_diag` has never shown is given up.
    give_up: Duration,
    /// The ports that `sock_diag` has shown since they were bound.
    seen: BTreeSet<u32>,
}

impl Ports {
    fn run(&mut self, requests: &Receiver<Sender<Result<()>>>, mut ghosts: Option<Ghosts>) {
        let mut wait = REFRESH;
        loop {
            match requests.recv_timeout(wait) {
                Ok(answer) => {
                    if let Some(ghosts) = &mut ghosts {
                        ghosts.end();
                    }
                    let _ = answer.send(self.release(Holding::Alive, Unseen::Release).map(drop));
                    wait = REFRESH;
                }
                Err(RecvTimeoutError::Disconnected) => return,
                // The ghosts' time is over; the rest of the pause is left.
                Err(RecvTimeoutError::Timeout) if wait < REFRESH => {
                    if let Some(ghosts) = &mut ghosts {
                        ghosts.end();
                    }
                    wait = REFRESH;
                }
                Err(RecvTimeoutError::Timeout) => {
                    // sock_diag says EBUSY now and then: the next round asks again, as WSL's tracker does.
                    let released = self.release(Holding::Any, Unseen::Keep).unwrap_or_default();
                    if let Some(ghosts) = &mut ghosts
                        && let Some(life) = ghosts.begin(&released)
                    {
                        wait = life;
                    }
                }
            }
        }
    }

    /// Releases the ports that no socket holds; returns them.
    fn release(&mut self, holding: Holding, unseen: Unseen) -> Result<Vec<u32>> {
        let bound = self.object.ports()?;
        if bound.is_empty() {
            self.seen.clear();
            return Ok(Vec::new());
        }
        let asked = now();
        let shown = self.diagnosis.ports(holding).context("listing the guest's sockets")?;
        self.seen.retain(|key| bound.contains_key(key));
        self.seen.extend(shown.iter().filter(|key| bound.contains_key(key)));
        let mut released = Vec::new();
        for (key, bound) in bound {
            let is_over = unseen == Unseen::Release
                || self.seen.contains(&key)
                || Duration::from_nanos(bound.at) + self.give_up < asked;
            // A bind since we asked: its socket could not be shown.
            let is_newer = self.object.port(key).is_none_or(|bound| Duration::from_nanos(bound.at) >= asked);
            if shown.contains(&key) || !is_over || is_newer {
                continue;
            }
            self.object.remove_port(key).with_context(|| format!("releasing {}", port_text(key)))?;
            self.seen.remove(&key);
            released.push((key, bound));
        }
        // A bind between the look at the map and the removal is not lost.
        if !released.is_empty() {
            let shown = self.diagnosis.ports(Holding::Alive).context("listing the guest's sockets")?;
            for (key, bound) in released.iter().filter(|(key, _)| shown.contains(key)) {
                self.object.add_port(*key, *bound)?;
            }
            released.retain(|(key, _)| !shown.contains(key));
        }
        Ok(released.into_iter().map(|(key, _)| key).collect())
    }
}

/// What becomes of a port that `sock_diag` has not shown yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unseen {
    Keep,
    Release,
}

/// The clock of `bpf_ktime_get_ns`.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
