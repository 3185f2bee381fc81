//! `wsl-mirror stopped`: what the unit runs when its agent has ended (`ExecStopPost=`).
//!
//! The policy route rules that keep connections on `lo` are right as long as an agent follows the machine. The next agent
//! finds them as they are, if it comes soon. If none comes, they go.

use anyhow::{Context as _, Result};
use clap::Args;

use crate::agent;
use crate::exit::Exit;
use crate::host::{
    lock::{Access, Lock},
    require_root,
    tool::{self, Unread},
};
use crate::loader::stop_keeping::stop_keeping;
use crate::output;

/// How long the rules stay without an agent.
const SECONDS: u32 = 10;

/// Arguments of `stopped`.
#[derive(Debug, Args)]
pub struct Stopped {
    /// The unit: the rules stay for some seconds if systemd starts it again
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
}

impl Stopped {
    /// Removes the rules that keep connections on `lo`, unless another agent follows soon.
    pub fn exec(self) -> Result<Exit> {
        require_root("remove policy route rules")?;
        let jobs = || tool::run("systemctl", &["list-jobs", "--no-legend", "--no-pager", "--full"]);
        let comes_back = self.unit.is_some_and(|unit| {
            let result = std::env::var("SERVICE_RESULT").unwrap_or_default();
            // systemd plans a restart of its own (`Restart=`) only after this program.
            has_failed(&result) || jobs().is_ok_and(|jobs| is_started_again(&jobs, &unit))
        });
        if comes_back {
            match remove_later() {
                Ok(()) => return Ok(Exit::Success),
                Err(error) => output::note(&format!(
                    "removing the rules that keep connections on lo now, since that cannot wait: {error:#}"
                )),
            }
        }
        let _lock = Lock::take(Access::Exclusive, output::note)?;
        // An agent takes its own lock first, and makes rules only under this one.
        if agent::lock::holder().is_none() && stop_keeping()? {
            output::note("no connection is kept on lo any more: there is no agent");
        }
        Ok(Exit::Success)
    }
}

/// Whether the agent has ended by a failure (`$SERVICE_RESULT`, systemd.exec(5)), after which systemd may start it again.
fn has_failed(result: &str) -> bool {
    !matches!(result, "" | "success" | "exec-condition" | "start-limit-hit")
}

/// Whether a job of systemd's starts the unit again: `JOB UNIT TYPE STATE`, one a line.
fn is_started_again(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(unit)
            && words.next().is_some_and(|kind| matches!(kind, "start" | "restart" | "try-restart"))
    })
}

/// Has systemd run this program again, without a unit's name.
fn remove_later() -> Result<()> {
    let program = std::env::current_exe().context("where this program is")?;
    let program = program.to_str().context("the path of this program is no text")?;
    let delay = format!("--on-active={SECONDS}");
    let precision = "--timer-property=AccuracySec=100ms";
    let started = tool::run("systemd-run", &["--quiet", "--collect", &delay, precision, program, "stopped"]);
    match started {
        Ok(_) => Ok(()),
        Err(Unread::NotInstalled) => anyhow::bail!("systemd-run is not installed"),
        Err(Unread::Failed(why)) => anyhow::bail!(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_known_by_its_job() {
        let jobs = "1234 wsl-mirror.service restart running\n 99 other.service start waiting\n";
        assert!(is_started_again(jobs, "wsl-mirror.service"));
        assert!(is_started_again(jobs, "other.service"));
        assert!(!is_started_again("7 wsl-mirror.service stop running\n", "wsl-mirror.service"));
        assert!(!is_started_again("7 wsl-mirror.service.wants start running\n", "wsl-mirror.service"));
        assert!(!is_started_again("\n7\n7 wsl-mirror.service\n", "wsl-mirror.service"));
    }

    #[test]
    fn a_failure_is_followed_by_another_start() {
        assert!(
            ["signal", "exit-code", "watchdog", "core-dump", "oom-kill", "timeout"]
                .iter()
                .all(|result| has_failed(result))
        );
        assert!(!["", "success", "exec-condition"].iter().any(|result| has_failed(result)));
    }

    #[test]
    fn the_unit_runs_it_after_its_agent() {
        let unit = include_str!("../../../contrib/wsl-mirror.service");
        let line = "ExecStopPost=-/usr/sbin/wsl-mirror stopped --unit=%n";
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}
