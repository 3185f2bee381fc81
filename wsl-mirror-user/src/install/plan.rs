//! From what the distribution has to what has to change. Nothing here looks at the machine.

use std::path::{Path, PathBuf};

use anyhow::Result;
use similar::TextDiff;

use super::state::{State, WSL_CONF};
use super::unit;
use super::wsl_conf::{self, Edited, NotUnderstood};
use crate::exit::{Exit, Failure};
use crate::host::wsl::Mode;

/// What is done, in this order, and what people have to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Nothing where all is as it should be.
    pub steps: Vec<Step>,
    /// For people.
    pub notes: Vec<String>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file gets another text, or goes.
    File {
        /// Which, in the distribution.
        path: &'static str,
        /// Its text, if it is there.
        before: Option<String>,
        /// Its text, if it stays.
        after: Option<String>,
    },
    /// The unit is started at boot.
    Enable {
        /// What the link is to.
        unit: PathBuf,
    },
    /// It is no more.
    Disable,
    /// The running systemd is told.
    Systemctl(&'static [&'static str]),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, before, after } => {
                let name = |text: &Option<String>| if text.is_some() { *path } else { "/dev/null" };
                let (old, new) =
                    (before.as_deref().unwrap_or_default(), after.as_deref().unwrap_or_default());
                let diff = TextDiff::from_lines(old, new);
                let diff = diff.unified_diff().header(name(before), name(after)).to_string();
                f.write_str(diff.trim_end_matches('\n'))
            }
            Self::Enable { unit } => write!(f, "link {} -> {}", unit::WANTED, unit.display()),
            Self::Disable => write!(f, "remove {}", unit::WANTED),
            Self::Systemctl(arguments) => write!(f, "systemctl {}", arguments.join(" ")),
        }
    }
}

/// What makes the agent start at boot.
pub fn install(state: &State) -> Result<Plan> {
    if state.mode == Mode::NotWsl {
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
    let systemd = found.systemd.unwrap_or(state.systemd_runs);
    if systemd {
        plan.unit(state, binary)?;
        plan.without_command(state)?;
    } else {
        plan.without_unit(state);
        let after = wsl_conf::with_ours(state.wsl_conf.as_deref(), binary).map_err(not_understood)?;
        plan.file(WSL_CONF, state.wsl_conf.as_ref(), Some(after));
    }
    plan.say(state, systemd);
    Ok(plan)
}

/// What takes all of that back.
pub fn uninstall(state: &State) -> Result<Plan> {
    let mut plan = Plan::default();
    plan.without_command(state)?;
    plan.without_unit(state);
    if !plan.steps.is_empty() {
        plan.notes.push(
            "what is loaded goes on steering until `wsl-mirror unload`, or `wsl --shutdown`".to_owned(),
        );
    }
    Ok(plan)
}

impl Plan {
    fn unit(&mut self, state: &State, binary: &str) -> Result<()> {
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
                        "{} does not run `wsl-mirror run`: somebody else has written it. Remove it (`systemctl disable \
                         --now {name}; rm {}`), or put what you need into a drop-in (`systemctl edit {name}`)",
                        unit::PATH,
                        unit::PATH,
                        name = unit::NAME
                    ),
                ));
            }
        };
        if state.wanted.is_none() {
            self.steps.push(Step::Enable { unit: unit.into() });
        }
        if !self.steps.is_empty() && state.here && state.systemd_runs {
            self.steps.push(Step::Systemctl(&["daemon-reload"]));
            // Not waited for: an engine may be waiting for us meanwhile.
            self.steps.push(Step::Systemctl(&["restart", "--no-block", unit::NAME]));
        }
        Ok(())
    }

    fn without_unit(&mut self, state: &State) {
        let ours = state.unit.as_ref().filter(|text| is_ours(text));
        if state.wanted.is_none() && ours.is_none() {
            return;
        }
        let told = state.here && state.systemd_runs;
        if told {
            self.steps.push(Step::Systemctl(&["stop", unit::NAME]));
        }
        if state.wanted.is_some() {
            self.steps.push(Step::Disable);
        }
        self.file(unit::PATH, ours, None);
        if told {
            self.steps.push(Step::Systemctl(&["daemon-reload"]));
        }
    }

    fn without_command(&mut self, state: &State) -> Result<()> {
        let Some(before) = &state.wsl_conf else { return Ok(()) };
        let after = match wsl_conf::without_ours(before).map_err(not_understood)? {
            Edited::Text(text) => Some(text),
            Edited::NoFile => None,
        };
        self.file(WSL_CONF, Some(before), after);
        Ok(())
    }

    fn file(&mut self, path: &'static str, before: Option<&String>, after: Option<String>) {
        if before != after.as_ref() {
            self.steps.push(Step::File { path, before: before.cloned(), after });
        }
    }

    fn say(&mut self, state: &State, systemd: bool) {
        match &state.mode {
            Mode::Other(mode) => self.notes.push(format!(
                "the networking mode is {mode}: nothing is done at boot until there is `networkingMode=mirrored` below \
                 `[wsl2]` in %UserProfile%\\.wslconfig"
            )),
            Mode::Unknown(why) => self.notes.push(format!("WSL does not say its networking mode: {why}")),
            Mode::Mirrored | Mode::Proxy(_) | Mode::NotWsl => {}
        }
        // A unit of the systemd that runs was started just now.
        let started = systemd && state.systemd_runs && state.here;
        if !(started || self.steps.is_empty()) {
            self.notes.push(
                "it starts with the next boot of the distribution (`wsl --shutdown` on Windows, then open it again); \
                 until then, `wsl-mirror load` steers"
                    .to_owned(),
            );
        }
    }
}

/// Whether a unit is one of ours, of whatever release.
fn is_ours(unit: &str) -> bool {
    let starts = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
    starts.and_then(|command| command.strip_suffix(" run")).is_some_and(|path| path.ends_with("/wsl-mirror"))
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
    Failure::new(Exit::NotUnderstood, format!("{WSL_CONF} is left as it is: line {line} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    const US: &str = "/usr/local/sbin/wsl-mirror";

    /// A distribution with systemd, in mirrored mode.
    fn state() -> State {
        State {
            mode: Mode::Mirrored,
            systemd_runs: true,
            here: true,
            wsl_conf: Some("[boot]\nsystemd=true\n".to_owned()),
            binary: US.into(),
            objection: None,
            unit: None,
            packaged: None,
            wanted: None,
        }
    }

    fn without_systemd() -> State {
        let wsl_conf = Some("[boot]\ncommand = service docker start\n".to_owned());
        State { systemd_runs: false, wsl_conf, ..state() }
    }

    /// What the distribution has when it is done.
    fn after(mut state: State, plan: &Plan) -> State {
        for step in &plan.steps {
            match step {
                Step::File { path: unit::PATH, after, .. } => state.unit.clone_from(after),
                Step::File { after, .. } => state.wsl_conf.clone_from(after),
                Step::Enable { unit } => state.wanted = Some(unit.clone()),
                Step::Disable => state.wanted = None,
                Step::Systemctl(_) => {}
            }
        }
        state
    }

    fn names(plan: &Plan) -> Vec<String> {
        let name = |step: &Step| match step {
            Step::File { path, after, .. } => {
                format!("{} {path}", if after.is_some() { "write" } else { "remove" })
            }
            other => other.to_string(),
        };
        plan.steps.iter().map(name).collect()
    }

    #[test]
    fn with_systemd_it_is_a_unit() {
        let plan = install(&state()).unwrap();
        let expected = [
            "write /etc/systemd/system/wsl-mirror.service",
            "link /etc/systemd/system/multi-user.target.wants/wsl-mirror.service -> \
             /etc/systemd/system/wsl-mirror.service",
            "systemctl daemon-reload",
            "systemctl restart --no-block wsl-mirror.service",
        ];
        assert_eq!(names(&plan), expected);
        assert_eq!(plan.notes, Vec::<String>::new());
    }

    #[test]
    fn without_systemd_it_is_a_part_of_the_boot_command_and_the_diff_shows_it() {
        let plan = install(&without_systemd()).unwrap();
        let [step] = &*plan.steps else { panic!("{plan:?}") };
        let shown = step.to_string();
        assert!(shown.starts_with("--- /etc/wsl.conf\n+++ /etc/wsl.conf\n@@"), "{shown}");
        assert!(
            shown.contains(
                "\n-command = service docker start\n+command = (/usr/local/sbin/wsl-mirror mode && "
            )
        );
        assert!(shown.ends_with("& service docker start"), "{shown}");
        assert!(plan.notes.iter().any(|note| note.contains("wsl --shutdown")), "{plan:?}");
    }

    #[test]
    fn what_counts_is_what_init_will_be_at_the_next_boot() {
        let to_come = State { wsl_conf: Some("[boot]\nsystemd=true\n".to_owned()), ..without_systemd() };
        assert_eq!(names(&install(&to_come).unwrap()).len(), 2, "a unit, and nobody is told");
        let to_go = State { wsl_conf: Some("[boot]\nsystemd=false\n".to_owned()), ..state() };
        assert_eq!(names(&install(&to_go).unwrap()), ["write /etc/wsl.conf"]);
        let unsaid = State { wsl_conf: None, ..state() };
        assert_eq!(names(&install(&unsaid).unwrap()).len(), 4);
    }

    #[test]
    fn installing_twice_changes_nothing_and_uninstall_leaves_what_was_there() {
        for before in [state(), without_systemd(), State { wsl_conf: None, ..without_systemd() }] {
            let installed = after(before.clone(), &install(&before).unwrap());
            assert_eq!(install(&installed).unwrap().steps, []);
            let uninstalled = after(installed.clone(), &uninstall(&installed).unwrap());
            assert_eq!(uninstalled, before);
            assert_eq!(uninstall(&uninstalled).unwrap(), Plan::default());
        }
    }

    #[test]
    fn who_changes_init_gets_the_other_way_and_never_both() {
        let with = after(state(), &install(&state()).unwrap());
        let changed =
            State { systemd_runs: false, wsl_conf: Some("[boot]\nsystemd=false\n".to_owned()), ..with };
        let other = after(changed.clone(), &install(&changed).unwrap());
        assert_eq!((&other.unit, &other.wanted), (&None, &None));
        assert!(other.wsl_conf.as_ref().unwrap().contains(US));
        let back = State {
            systemd_runs: true,
            wsl_conf: Some(other.wsl_conf.unwrap().replace("false", "true")),
            ..other
        };
        let back = after(back.clone(), &install(&back).unwrap());
        assert!(back.unit.is_some() && back.wanted.is_some());
        assert_eq!(back.wsl_conf.unwrap(), "[boot]\nsystemd=true\n");
    }

    #[test]
    fn a_packages_unit_is_only_switched_on() {
        let packaged = (unit::PACKAGED[1], unit::TEXT.to_owned());
        let state = State { binary: unit::PACKAGED_BINARY.into(), packaged: Some(packaged), ..state() };
        let plan = install(&state).unwrap();
        assert_eq!(plan.steps[0], Step::Enable { unit: unit::PACKAGED[1].into() });
        // A program elsewhere takes precedence, as units do.
        let other = State { binary: US.into(), ..state };
        assert_eq!(names(&install(&other).unwrap())[0], "write /etc/systemd/system/wsl-mirror.service");
    }

    #[test]
    fn in_a_folder_nobody_is_told() {
        let plan = install(&State { here: false, ..state() }).unwrap();
        assert!(!plan.steps.iter().any(|step| matches!(step, Step::Systemctl(_))), "{plan:?}");
    }

    #[test]
    fn another_mode_is_said_and_installed_for() {
        let plan = install(&State { mode: Mode::Other("nat".into()), ..state() }).unwrap();
        assert!(
            plan.notes[0].contains("nat") && plan.notes[0].contains("networkingMode=mirrored"),
            "{plan:?}"
        );
        assert_eq!(plan.steps.len(), 4);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refusals = [
            (State { mode: Mode::NotWsl, ..state() }, Exit::NotWsl, "not WSL"),
            (State { wsl_conf: Some("[boot\n".into()), ..state() }, Exit::NotUnderstood, "line 1"),
            (
                State { unit: Some("[Service]\nExecStart=/bin/true\n".into()), ..state() },
                Exit::NotUnderstood,
                "systemctl edit",
            ),
            (
                State { objection: Some("/home/me belongs to user 1000".into()), ..state() },
                Exit::NotUnderstood,
                "sudo install",
            ),
            (State { binary: "/opt/a b/wsl-mirror".into(), ..state() }, Exit::NotUnderstood, "letters"),
            (State { binary: "/opt/other".into(), ..state() }, Exit::NotUnderstood, "another name"),
        ];
        for (state, exit, word) in refusals {
            let error = install(&state).unwrap_err();
            assert_eq!(exit_of(&error), exit, "{error:#}");
            assert!(error.to_string().contains(word), "{error:#}");
        }
    }

    #[test]
    fn uninstall_leaves_somebody_elses_unit_alone() {
        let theirs = State { unit: Some("[Service]\nExecStart=/bin/true\n".into()), ..state() };
        assert_eq!(uninstall(&theirs).unwrap(), Plan::default());
    }
}
