//! `wsl-mirror run`: state read → plan computed → difference carried out, again with each change in the world.
//!
//! Nothing that steers depends on it: it may be killed at any moment, what is pinned goes on, and the next one picks
//! everything up. So it keeps nothing that it could not read again.

mod events;
mod keeper;
pub mod report;
mod schedule;
mod systemd;

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::events::{Event, Events};
use self::keeper::{Keeper, Round, Standing};
use self::report::Report;
use self::schedule::{Changes, Schedule};
use self::systemd::Systemd;
use crate::exit::exit_of;
use crate::host::lock::Lock;
use crate::output;
use crate::wanted::Wanted;

/// How long it waits for another wsl-mirror before it tries again later. systemd waits 10 s for it to be ready.
const PATIENCE: Duration = Duration::from_secs(3);

/// Keeps the world as it should be until SIGTERM or SIGINT; then everything goes on as it is.
pub fn run(wanted: Wanted) -> Result<()> {
    // For one round at a time. A second thread, now and then, while the first one comes to rest, would be one more heap.
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build()?;
    runtime.block_on(Agent::start(wanted)?.stay())
}

struct Agent {
    wanted: Wanted,
    /// Away while it works.
    keeper: Option<Keeper>,
    seat: report::Seat,
    report: Report,
    systemd: Systemd,
}

impl Agent {
    fn start(wanted: Wanted) -> Result<Self> {
        // Before anything is touched: what does not fit now is told by the exit code.
        let keeper = Keeper::new(wanted.clone())?;
        let seat = report::Seat::take()?;
        Ok(Self {
            wanted,
            keeper: Some(keeper),
            seat,
            report: Report::default(),
            systemd: Systemd::default(),
        })
    }

    async fn stay(mut self) -> Result<()> {
        // Listened to before the first look, so that no change is missed.
        let mut events = Events::listen(self.wanted.config_path())?;
        let mut schedule = Schedule::new(Instant::now());
        let mut changes = Changes::ALL;
        let mut is_first = true;
        loop {
            if !changes.is_empty() {
                if changes.untold && events.watch_again() {
                    schedule.note(Event::Config, Instant::now());
                }
                let Some(lock) = self.wait_for_lock(&mut events, &mut schedule).await? else { break };
                let done = match lock {
                    Ok(lock) => self.round(changes, schedule.is_patient(Instant::now()), lock).await?,
                    Err(error) => Err(error),
                };
                match done {
                    // What another try does not mend is told by the exit code; everything else is tried again.
                    Err(error) if is_first && !exit_of(&error).is_worth_another_try() => {
                        self.seat.leave();
                        return Err(error);
                    }
                    done => self.tell(&done, &mut schedule),
                }
                if std::mem::take(&mut is_first) {
                    systemd::ready();
                }
                self.systemd.reloaded();
            }
            let wait = schedule.next().min(self.systemd.next_sign_of_life());
            tokio::select! {
                event = events.next() => if self.heard(event?, &mut schedule) { break },
                () = tokio::time::sleep_until(wait.into()) => {}
            }
            self.systemd.sign_of_life();
            changes = schedule.take(Instant::now());
        }
        systemd::stopping();
        self.seat.leave();
        Ok(())
    }

    /// Whether it is to end.
    fn heard(&mut self, event: Event, schedule: &mut Schedule) -> bool {
        if event == Event::Reload {
            self.systemd.reloading();
        }
        schedule.note(event, Instant::now());
        event == Event::Stop
    }

    /// Waits until nobody else changes anything; `None` if it is told to end meanwhile. From there on a round is short, and
    /// is not broken off.
    async fn wait_for_lock(
        &mut self,
        events: &mut Events,
        schedule: &mut Schedule,
    ) -> Result<Option<Result<Lock>>> {
        let mut lock = pin!(Lock::take_async(PATIENCE, output::note));
        loop {
            tokio::select! {
                biased;
                lock = &mut lock => return Ok(Some(lock)),
                event = events.next() => if self.heard(event?, schedule) { return Ok(None) },
            }
        }
    }

    /// A round blocks, and netlink's own runtime cannot run within ours: so it has a thread.
    async fn round(&mut self, changes: Changes, is_patient: bool, lock: Lock) -> Result<Result<Round>> {
        let mut keeper = self.keeper.take().context("the last round never came to its end")?;
        let (mut keeper, done) = tokio::task::spawn_blocking(move || {
            let done = keeper.round(changes, is_patient, &lock);
            (keeper, done)
        })
        .await
        .context("a round broke off")?;
        output::notes(&std::mem::take(&mut keeper.notes));
        self.keeper = Some(keeper);
        Ok(done)
    }

    /// Tells whoever wants to know, if there is something new.
    fn tell(&mut self, done: &Result<Round>, schedule: &mut Schedule) {
        let config_error = self.keeper.as_ref().and_then(|keeper| keeper.config_error.clone());
        schedule.refuses_config(config_error.is_some());
        let mut report = Report { pid: std::process::id(), config_error, ..self.report.clone() };
        match done {
            Ok(round) => {
                schedule.went_well(round.repair, Instant::now());
                round.standing.name().clone_into(&mut report.state);
                report.says = round.standing.to_string();
                report.warnings.clone_from(&round.warnings);
                if !round.steps.is_empty() && !self.report.says.is_empty() {
                    output::note(&format!("something has changed; done: {}", round.steps.join("; ")));
                }
                let aside = match round.standing {
                    Standing::Aside { is_free, .. } => Some(is_free),
                    _ => None,
                };
                schedule.stands_aside(aside, Instant::now());
            }
            Err(error) => {
                schedule.went_wrong(Instant::now());
                "failing".clone_into(&mut report.state);
                report.says = format!("{error:#}");
            }
        }
        if report == self.report {
            return;
        }
        if report.says != self.report.says {
            output::note(&report.says);
        }
        let is_new = |warning: &&String| !self.report.warnings.contains(warning);
        for warning in report.warnings.iter().filter(is_new) {
            output::note(warning);
        }
        match &report.config_error {
            Some(error) if Some(error) != self.report.config_error.as_ref() => {
                output::note(&format!("{error}; what was said before stays in force"));
            }
            None if self.report.config_error.is_some() => output::note("the configuration is valid again"),
            _ => {}
        }
        systemd::status(&report);
        self.report = report;
        if let Err(error) = self.seat.write(&self.report) {
            output::note(&format!("`wsl-mirror status` will not know of this: {error:#}"));
        }
    }
}
