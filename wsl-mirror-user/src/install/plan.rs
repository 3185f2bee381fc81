//! From what the distribution has to what has to change. Nothing here looks at the machine.

use std::path::Path;

use anyhow::Result;

use super::agent::Running;
use super::state::{State, WSL_CONF};
use super::step::Step;
use super::unit;
use super::wsl_conf::{self, Edited, Init, NotUnderstood};
use crate::exit::{Exit, Failure};
use crate::host::networking::NetworkingMode;

/// What is done, in this order, and what people have to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Nothing where all is as it should be.
    pub steps: Vec<Step>,
    /// For people.
    pub notes: Vec<String>,
    /// What is left to do by hand, and why; the rest is done in spite of it.
    pub refused: Vec<String>,
    /// What becomes of the steps after one that fails.
    pub on_failure: OnFailure,
}

/// What becomes of the steps after one that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They are left out: each builds on those before it.
    #[default]
    Stop,
    /// They are carried out: each takes something else away.
    GoOn,
}

/// Who has called `uninstall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A person.
    User,
    /// The scripts of the package, which look after its own unit and link.
    Package,
}

/// What makes the agent start at boot.
pub fn install(state: &State) -> Result<Plan> {
    if state.mode == NetworkingMode::NotWsl {
        return Err(Failure::new(
            Exit::NotWsl,
            "this is not WSL: there is no mirrored mode, and nothing to start at boot. `wsl-mirror load` works wherever \
             there is an interface for it",
        ));
    }
    let binary = program(state)?;
    let found = wsl_conf::parse(state.wsl_conf.as_deref().unwrap_or_default()).map_err(not_understood)?;
    let mut plan = Plan::default();
    // What counts is the next boot.
    let init = found.init.unwrap_or(if state.systemd_runs { Init::Systemd } else { Init::Wsl });
    if init == Init::Systemd {
        plan.unit(state, binary)?;
        plan.without_command(state)?;
    } else {
        plan.without_unit(state, Caller::User);
        let after = wsl_conf::with_ours(state.wsl_conf.as_deref(), binary).map_err(not_understood)?;
        plan.wsl_conf(state, Some(after))?;
    }
    plan.restart(state);
    plan.add_notes(state, init);
    plan.put_in_order();
    Ok(plan)
}

/// What has an agent whose program was replaced make way for the new one, where no systemd does that.
pub fn upgrade(state: &State) -> Plan {
    let mut plan = Plan::default();
    plan.restart(state);
    plan
}

/// What takes all of that back.
pub fn uninstall(state: &State, caller: Caller) -> Plan {
    let mut plan = Plan { on_failure: OnFailure::GoOn, ..Plan::default() };
    plan.without_unit(state, caller);
    if let Err(error) = plan.without_command(state) {
        if state.wsl_conf.as_deref().is_some_and(wsl_conf::has_ours) {
            plan.refused.push(format!("{error:#}"));
        } else {
            plan.notes.push(format!("{error:#}; nothing of ours is in it"));
        }
    }
    let stops = plan.steps.iter().any(|step| matches!(step, Step::Systemctl(["stop", ..])));
    // With systemd, one that the unit has not started is somebody's own; with the package its program goes.
    if let Some(agent) = &state.agent
        && !stops
        && (caller == Caller::Package || !state.systemd_runs)
    {
        plan.steps.push(Step::End { pid: agent.pid });
    }
    if !plan.steps.is_empty() && caller == Caller::User {
        plan.notes.push(
            "what is loaded goes on steering until `wsl-mirror unload`, or `wsl --shutdown`".to_owned(),
        );
    }
    plan.put_in_order();
    plan
}

impl Plan {
    fn unit(&mut self, state: &State, binary: &str) -> Result<()> {
        if state.masked {
            return Err(Failure::new(
                Exit::NotUnderstood,
                format!(
                    "{} is masked, by you or by a package that was removed: it shall not be started. `systemctl unmask {}` \
                     first",
                    unit::PATH,
                    unit::NAME
                ),
            ));
        }
        let text = unit::text(binary);
        let unit = match (&state.unit, &state.packaged) {
            // The package's own, if it runs this program.
            (None, Some((path, packaged))) if *packaged == text => *path,
            (None, _) => {
                self.file(unit::PATH, None, Some(text));
                unit::PATH
            }
            (Some(there), _) if is_ours(there) => {
                self.file(unit::PATH, Some(there), Some(text));
                unit::PATH
            }
            (Some(_), _) => {
                return Err(Failure::new(
                    Exit::NotUnderstood,
                    format!(
                        "{} is not as `install` writes it: somebody else has written it. Remove it (`systemctl disable \
                         --now {name}; rm {}`), or put what you need into a drop-in (`systemctl edit {name}`)",
                        unit::PATH,
                        unit::PATH,
                        name = unit::NAME
                    ),
                ));
            }
        };
        if state.boot_link.is_none() {
            self.steps.push(Step::Enable { unit: unit.into() });
        }
        let changes = !self.steps.is_empty();
        let replaced = state.agent.as_ref().is_some_and(|agent| agent.replaced.is_some());
        if state.can_tell_systemd() && changes {
            self.steps.push(Step::Systemctl(&["daemon-reload"]));
        }
        if state.can_tell_systemd() && (changes || replaced) {
            // Not waited for: an engine may be waiting for us meanwhile.
            self.steps.push(Step::Systemctl(&["restart", "--no-block", unit::NAME]));
        }
        Ok(())
    }

    fn without_unit(&mut self, state: &State, caller: Caller) {
        let ours = state.unit.as_ref().filter(|text| is_ours(text));
        let theirs = state.unit.is_some() && ours.is_none();
        let kept = |target: &Path| {
            caller == Caller::Package && unit::PACKAGED.iter().any(|path| target == Path::new(path))
        };
        let linked = state.boot_link.as_deref().is_some_and(|target| !kept(target));
        // The link to a unit that is masked starts nothing, and tells a package that comes back that it was enabled.
        if state.masked || theirs || !(linked || ours.is_some()) {
            return;
        }
        if linked {
            self.steps.push(Step::Disable);
        }
        self.file(unit::PATH, ours, None);
        if state.can_tell_systemd() {
            // In this order: a unit whose file is gone is forgotten when it is not at work.
            self.steps.push(Step::Systemctl(&["stop", unit::NAME]));
            self.steps.push(Step::Systemctl(&["daemon-reload"]));
        }
    }

    fn without_command(&mut self, state: &State) -> Result<()> {
        let Some(before) = &state.wsl_conf else { return Ok(()) };
        let after = match wsl_conf::without_ours(before).map_err(not_understood)? {
            Edited::Text(text) => Some(text),
            Edited::NoFile => None,
        };
        self.wsl_conf(state, after)
    }

    fn wsl_conf(&mut self, state: &State, after: Option<String>) -> Result<()> {
        if let Some(link) = &state.wsl_conf_link
            && state.wsl_conf != after
        {
            return Err(left_alone(format!(
                "it is a link to {}: something else looks after it. Make it a file, or let that do what `install` or \
                 `uninstall` does",
                link.display()
            )));
        }
        self.file(WSL_CONF, state.wsl_conf.as_ref(), after);
        Ok(())
    }

    fn restart(&mut self, state: &State) {
        if let Some(Running { pid, replaced: Some(program) }) = &state.agent
            && !state.can_tell_systemd()
        {
            self.steps.push(Step::Restart { pid: *pid, program: program.clone() });
        }
    }

    /// What is written down comes first: somebody may end us, or systemd keep us waiting.
    fn put_in_order(&mut self) {
        self.steps.sort_by_key(Step::is_about_now);
    }

    fn file(&mut self, path: &'static str, before: Option<&String>, after: Option<String>) {
        if before != after.as_ref() {
            self.steps.push(Step::File { path, before: before.cloned(), after });
        }
    }

    fn add_notes(&mut self, state: &State, init: Init) {
        match &state.mode {
            NetworkingMode::Unknown(why) => {
                self.notes.push(format!("WSL does not say its networking mode: {why}"));
            }
            mode if !mode.may_have_loopback0() && *mode != NetworkingMode::NotWsl => self.notes.push(format!(
                "the networking mode is {}: nothing is done at boot until there is `networkingMode=mirrored` below \
                 `[wsl2]` in %UserProfile%\\.wslconfig",
                mode.name()
            )),
            _ => {}
        }
        // A unit of the systemd that runs was started just now.
        let started = init == Init::Systemd && state.systemd_runs && state.is_running;
        if !started && !self.steps.iter().all(Step::is_about_now) {
            self.notes.push(
                "it starts with the next boot of the distribution (`wsl --shutdown` on Windows, then open it again); \
                 until then, `wsl-mirror load` steers"
                    .to_owned(),
            );
        }
    }
}

/// Whether a unit is one of ours, of whatever release; an administrator's own may well run the same command.
fn is_ours(unit: &str) -> bool {
    let has = |line: Option<&str>| line.is_some_and(|line| unit.lines().any(|other| other == line));
    let starts = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
    let runs = starts.and_then(|command| command.strip_suffix(" run"));
    runs.is_some_and(|path| path.ends_with("/wsl-mirror"))
        && (has(unit::TEXT.lines().next())
            || has(unit::TEXT.lines().find(|line| line.starts_with("Documentation="))))
}

fn program(state: &State) -> Result<&str> {
    let refuse = |why: String| {
        Err(Failure::new(
            Exit::NotUnderstood,
            format!(
                "root is not to run {} at every boot: {why}. Put it where only root can write: `sudo install -m 755 {} \
                 /usr/local/sbin/`, then `sudo /usr/local/sbin/wsl-mirror install`",
                state.binary.display(),
                state.binary.display()
            ),
        ))
    };
    if let Some(why) = &state.objection {
        return refuse(why.clone());
    }
    match state.binary.to_str() {
        Some(path) if wsl_conf::can_be_written(path) && Path::new(path).ends_with("wsl-mirror") => Ok(path),
        _ => refuse(
            "its path has letters that mean something else in a unit or a shell, or another name".to_owned(),
        ),
    }
}

fn not_understood(NotUnderstood { line, what }: NotUnderstood) -> anyhow::Error {
    left_alone(format!("line {line} {what}"))
}

#[expect(clippy::needless_pass_by_value, reason = "it is always made for this")]
fn left_alone(why: String) -> anyhow::Error {
    Failure::new(Exit::NotUnderstood, format!("{WSL_CONF} is left as it is: {why}"))
}

#[cfg(test)]
mod tests;
