//! `wsl-mirror run`: state read → plan computed → difference carried out, again with each change in the world.
//!
//! Nothing that steers depends on it: it may be killed at any moment, what is pinned goes on, and the next one picks
//! everything up. So it keeps nothing that it could not read again.

mod changes;
mod events;
mod keeper;
pub mod lock;
mod log;
mod newest;
mod reading;
mod repair_limit;
pub mod report;
mod schedule;
mod standing;
mod systemd;

use std::ops::ControlFlow;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::changes::{Changes, Repairs};
use self::events::{Event, Events};
use self::keeper::{Keeper, Round};
use self::lock::AgentLock;
use self::reading::Reading;
use self::report::{Report, State};
use self::schedule::{ConfigState, Schedule};
use self::standing::Standing;
use self::systemd::Systemd;
use crate::config::options::LoadOptions;
use crate::exit::exit_of;
use crate::host::firewall::{self, Firewall};
use crate::host::lock::Lock;
use crate::loader::local_addresses;
use crate::loader::stop_keeping::stop_keeping;
use crate::notes::Notes;

/// How long the agent waits for another wsl-mirror before it repeats the round later. systemd waits 10 s for READY.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
/// The same for an agent that ends.
const END_LIMIT: Duration = Duration::from_millis(500);

/// Takes each sentence of the agent at the moment at which the agent has it.
pub type Log = fn(&str);

/// Keeps the machine steering until SIGTERM or SIGINT. What is loaded goes on steering then.
pub fn run(options: LoadOptions, log: Log) -> Result<()> {
    // One round runs at a time, and one reading of packet filters. Another thread would have one more heap.
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(2).enable_all().build()?;
    runtime.block_on(Agent::start(options, log)?.stay())
}

struct Agent {
    options: LoadOptions,
    /// `None` while a round runs.
    keeper: Option<Keeper>,
    reading: Reading,
    lock: AgentLock,
    report: Report,
    systemd: Systemd,
    log: Log,
}

impl Agent {
    fn start(options: LoadOptions, log: Log) -> Result<Self> {
        // A bad configuration ends the agent here, with its exit code, before anything is touched.
        let mut keeper = Keeper::new(options.clone())?;
        log_all(log, std::mem::take(&mut keeper.notes));
        let lock = AgentLock::take()?;
        Ok(Self {
            options,
            keeper: Some(keeper),
            reading: Reading::default(),
            lock,
            report: Report::default(),
            systemd: Systemd::default(),
            log,
        })
    }

    async fn stay(mut self) -> Result<()> {
        // The agent listens before its first look, so that it misses no change.
        let mut events = Events::listen(self.options.config_path())?;
        let mut schedule = Schedule::new(Instant::now());
        let mut changes = Changes::ALL;
        let mut is_first = true;
        loop {
            if !changes.is_empty() {
                if changes.unwatched && events.watch_again() {
                    schedule.note(Event::Config, Instant::now());
                }
                let Some(lock) = self.wait_for_lock(&mut events, &mut schedule).await? else { break };
                let done = match lock {
                    Ok(lock) => self.round(changes, schedule.repairs(Instant::now()), lock).await?,
                    Err(error) => Err(error),
                };
                match done {
                    // A permanent failure of the first round ends the agent; any other round is repeated.
                    Err(error) if is_first && !exit_of(&error).is_retryable() => {
                        self.end().await;
                        return Err(error);
                    }
                    done => self.report(&done, &mut schedule),
                }
                if std::mem::take(&mut is_first) {
                    systemd::ready();
                }
                self.systemd.reloaded();
                // Before there is a ring, nothing is pinned, and the round has said why.
                if events.open_sockets().unwrap_or(false) {
                    schedule.note(Event::Sockets, Instant::now());
                }
            }
            self.glance(&mut events, &mut schedule).await?;
            let wait = schedule.next(Instant::now()).min(self.systemd.next_sign_of_life());
            tokio::select! {
                event = events.next() => if self.note(event?, &mut schedule).is_break() { break },
                read = &mut self.reading => {
                    schedule.reading_ends(Instant::now());
                    if self.take_rules(read?, &mut events).await? {
                        schedule.note_leased_ports(Instant::now());
                    }
                }
                () = tokio::time::sleep_until(wait.into()) => {}
            }
            self.systemd.sign_of_life();
            changes = schedule.take(Instant::now());
        }
        self.end().await;
        Ok(())
    }

    /// Notes an event; SIGTERM and SIGINT break the loop.
    fn note(&mut self, event: Event, schedule: &mut Schedule) -> ControlFlow<()> {
        if event == Event::Reload {
            self.systemd.reloading();
        }
        schedule.note(event, Instant::now());
        if event == Event::Stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Waits for the lock of the network namespace; `None` if the agent has to end meanwhile. A round that holds the lock is
    /// short, and is not interrupted.
    async fn wait_for_lock(
        &mut self,
        events: &mut Events,
        schedule: &mut Schedule,
    ) -> Result<Option<Result<Lock>>> {
        let mut lock = pin!(Lock::take_async(LOCK_LIMIT, self.log));
        loop {
            tokio::select! {
                biased;
                lock = &mut lock => return Ok(Some(lock)),
                event = events.next() => if self.note(event?, schedule).is_break() { return Ok(None) },
            }
        }
    }

    /// Glances at what is due.
    async fn glance(&mut self, events: &mut Events, schedule: &mut Schedule) -> Result<()> {
        let start = Instant::now();
        let glance = schedule.take_glance(start);
        if glance.rules || glance.legacy && firewall::has_legacy_tables() {
            schedule.reading_begins(start);
            self.reading.begin();
        }
        if glance.sockets {
            let told = events.take_sockets();
            self.with_keeper(move |keeper| keeper.glance(&told)).await?;
            schedule.glanced(start.elapsed(), Instant::now());
        }
        Ok(())
    }

    /// Takes packet filters that were read beside everything else. Says whether a round has to follow at once.
    async fn take_rules(&mut self, read: Firewall, events: &mut Events) -> Result<bool> {
        let told = events.take_sockets();
        let taken = self.with_keeper(move |keeper| {
            let needs_round = keeper.take_rules(read);
            keeper.glance(&told);
            needs_round
        });
        taken.await
    }

    /// The agent ends. systemd's unit knows a restart from a stop (`wsl-mirror stopped`); without it, nobody would remove the
    /// rules that keep connections on `lo`.
    async fn end(self) {
        systemd::stopping();
        if let Err(error) = local_addresses::clear() {
            (self.log)(&format!("this machine's LAN addresses count for two more minutes: {error:#}"));
        }
        if !systemd::is_there() {
            let lock = Lock::take_async(END_LIMIT, self.log).await;
            let stopped = tokio::task::spawn_blocking(|| {
                let _lock = lock?;
                stop_keeping()
            });
            if let Ok(Err(error)) = stopped.await {
                (self.log)(&format!(
                    "the policy route rules that keep connections on lo are left; `wsl-mirror unload` removes them: \
                     {error:#}"
                ));
            }
        }
        self.lock.release();
    }

    /// Has the keeper do something on the rounds' thread.
    async fn with_keeper<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Keeper) -> T + Send + 'static,
    ) -> Result<T> {
        let mut keeper = self.keeper.take().context("the last round never came to its end")?;
        let (keeper, done) = tokio::task::spawn_blocking(move || {
            let done = work(&mut keeper);
            (keeper, done)
        })
        .await
        .context("a round broke off")?;
        self.keeper = Some(keeper);
        Ok(done)
    }

    /// A round has a thread: it blocks, and netlink's own runtime cannot run within ours.
    async fn round(&mut self, changes: Changes, repairs: Repairs, lock: Lock) -> Result<Result<Round>> {
        let done = self.with_keeper(move |keeper| {
            let done = keeper.round(changes, repairs, &lock);
            (done, std::mem::take(&mut keeper.notes))
        });
        let (done, notes) = done.await?;
        log_all(self.log, notes);
        Ok(done)
    }

    /// Tells schedule, log, `status` and systemd what came of a round.
    fn report(&mut self, done: &Result<Round>, schedule: &mut Schedule) {
        let config_error = self.keeper.as_ref().and_then(|keeper| keeper.config_error.clone());
        let config_state = if config_error.is_some() { ConfigState::Refused } else { ConfigState::InForce };
        schedule.note_config(config_state);
        let mut report = Report { pid: std::process::id(), config_error, ..self.report.clone() };
        match done {
            Ok(round) => {
                schedule.went_well(round.repair, Instant::now());
                report.state = round.standing.state();
                report.says = round.standing.to_string();
                report.warnings.clone_from(&round.warnings);
                let neighbour = match round.standing {
                    Standing::Aside { neighbour, .. } => Some(neighbour),
                    _ => None,
                };
                schedule.note_neighbour(neighbour, Instant::now());
            }
            Err(error) => {
                schedule.went_wrong(Instant::now());
                report.state = State::Failing;
                report.says = format!("{error:#}");
            }
        }
        let steps = done.as_ref().map_or(&[] as &[String], |round| &round.steps);
        log_all(self.log, log::notes(&self.report, &report, steps));
        if report == self.report {
            return;
        }
        systemd::status(&report);
        self.report = report;
        if let Err(error) = self.lock.write(&self.report) {
            (self.log)(&format!("`wsl-mirror status` will not know of this: {error:#}"));
        }
    }
}

fn log_all(log: Log, notes: Notes) {
    for note in notes {
        log(&note);
    }
}
