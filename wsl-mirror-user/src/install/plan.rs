//! From what the distribution has to what has to change. Nothing here looks at the machine.

use std::path::{Path, PathBuf};

use anyhow::Result;
use similar::TextDiff;

use super::agent::Running;
use super::state::{State, WSL_CONF};
use super::unit;
use super::wsl_conf::{self, Edited, NotUnderstood};
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
    /// Whether a step that fails keeps those after it from being done. What is taken away does not depend on what else is.
    pub goes_on: bool,
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
    /// The agent ends, where systemd does not end it.
    End {
        /// Its process.
        pid: i32,
    },
    /// The program that has taken the place of the agent's runs instead, where systemd does not see to it.
    Restart {
        /// The agent's process.
        pid: i32,
        /// Where the program is.
        program: PathBuf,
    },
}

impl Step {
    /// Whether it is about what runs, not about what is written down.
    fn is_about_now(&self) -> bool {
        matches!(self, Self::Systemctl(_) | Self::End { .. } | Self::Restart { .. })
    }
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
            Self::End { pid } => write!(f, "end the agent (process {pid})"),
            Self::Restart { pid, program } => {
                write!(f, "restart the agent (process {pid}): {} was replaced", program.display())
            }
        }
    }
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
    let systemd = found.systemd.unwrap_or(state.systemd_runs);
    if systemd {
        plan.unit(state, binary)?;
        plan.without_command(state)?;
    } else {
        plan.without_unit(state, false);
        let after = wsl_conf::with_ours(state.wsl_conf.as_deref(), binary).map_err(not_understood)?;
        plan.wsl_conf(state, Some(after))?;
    }
    plan.restart(state);
    plan.say(state, systemd);
    plan.put_in_order();
    Ok(plan)
}

/// What has an agent whose program was replaced make way for the new one, where no systemd does that.
pub fn upgrade(state: &State) -> Plan {
    let mut plan = Plan::default();
    plan.restart(state);
    plan
}

/// What takes all of that back; what the package's own scripts look after, if they are what asks.
pub fn uninstall(state: &State, keep_package: bool) -> Plan {
    let mut plan = Plan { goes_on: true, ..Plan::default() };
    plan.without_unit(state, keep_package);
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
        && (keep_package || !state.systemd_runs)
    {
        plan.steps.push(Step::End { pid: agent.pid });
    }
    if !plan.steps.is_empty() && !keep_package {
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
        if state.wanted.is_none() {
            self.steps.push(Step::Enable { unit: unit.into() });
        }
        let changes = !self.steps.is_empty();
        let replaced = state.agent.as_ref().is_some_and(|agent| agent.replaced.is_some());
        if state.told() && changes {
            self.steps.push(Step::Systemctl(&["daemon-reload"]));
        }
        if state.told() && (changes || replaced) {
            // Not waited for: an engine may be waiting for us meanwhile.
            self.steps.push(Step::Systemctl(&["restart", "--no-block", unit::NAME]));
        }
        Ok(())
    }

    fn without_unit(&mut self, state: &State, keep_package: bool) {
        let ours = state.unit.as_ref().filter(|text| is_ours(text));
        let theirs = state.unit.is_some() && ours.is_none();
        let kept =
            |target: &Path| keep_package && unit::PACKAGED.iter().any(|path| target == Path::new(path));
        let linked = state.wanted.as_deref().is_some_and(|target| !kept(target));
        // The link to a unit that is masked starts nothing, and tells a package that comes back that it was enabled.
        if state.masked || theirs || !(linked || ours.is_some()) {
            return;
        }
        if linked {
            self.steps.push(Step::Disable);
        }
        self.file(unit::PATH, ours, None);
        if state.told() {
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
            && !state.told()
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

    fn say(&mut self, state: &State, systemd: bool) {
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
        let started = systemd && state.systemd_runs && state.here;
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
mod tests {
    use super::*;
    use crate::exit::exit_of;

    const US: &str = "/usr/local/sbin/wsl-mirror";

    /// A distribution with systemd, in mirrored mode.
    fn state() -> State {
        State {
            mode: NetworkingMode::Mirrored,
            systemd_runs: true,
            here: true,
            wsl_conf: Some("[boot]\nsystemd=true\n".to_owned()),
            wsl_conf_link: None,
            binary: US.into(),
            objection: None,
            unit: None,
            masked: false,
            packaged: None,
            wanted: None,
            agent: None,
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
                Step::End { .. } => state.agent = None,
                Step::Systemctl(_) | Step::Restart { .. } => {}
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
            let uninstalled = after(installed.clone(), &uninstall(&installed, false));
            assert_eq!(uninstalled, before);
            assert_eq!(uninstall(&uninstalled, false).steps, []);
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
        let plan = install(&State { mode: NetworkingMode::Nat, ..state() }).unwrap();
        assert!(
            plan.notes[0].contains("nat") && plan.notes[0].contains("networkingMode=mirrored"),
            "{plan:?}"
        );
        assert_eq!(plan.steps.len(), 4);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refusals = [
            (State { mode: NetworkingMode::NotWsl, ..state() }, Exit::NotWsl, "not WSL"),
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
    fn uninstall_leaves_somebody_elses_unit_alone_and_what_starts_it() {
        for text in
            ["[Service]\nExecStart=/bin/true\n", "[Service]\nExecStart=/usr/local/sbin/wsl-mirror run\n"]
        {
            let theirs = State { unit: Some(text.into()), wanted: Some(unit::PATH.into()), ..state() };
            assert_eq!(uninstall(&theirs, false).steps, [], "{text}");
            let error = install(&theirs).unwrap_err();
            assert_eq!(exit_of(&error), Exit::NotUnderstood, "{error:#}");
        }
    }

    #[test]
    fn a_unit_of_ours_is_known_though_somebody_has_changed_a_line_of_it() {
        let ours = unit::text(US);
        assert!(is_ours(&ours));
        let without = |start: &str| -> String {
            ours.lines()
                .filter(|line| !line.starts_with(start))
                .fold(String::new(), |text, line| text + line + "\n")
        };
        assert!(is_ours(&without("# What packages")) && is_ours(&without("Documentation=")));
        assert!(!is_ours(&without("ExecStart=")));
    }

    #[test]
    fn a_masked_unit_is_left_masked_and_in_nobodys_way() {
        // As a package leaves it that was removed, but not purged.
        let masked = |state: State| State { masked: true, wanted: Some(unit::PACKAGED[1].into()), ..state };
        let error = install(&masked(state())).unwrap_err();
        assert_eq!(exit_of(&error), Exit::NotUnderstood);
        assert!(error.to_string().contains("systemctl unmask wsl-mirror.service"), "{error:#}");
        assert_eq!(uninstall(&masked(state()), false).steps, []);
        let before = masked(without_systemd());
        let installed = after(before.clone(), &install(&before).unwrap());
        assert!(installed.wsl_conf.as_ref().unwrap().contains(US));
        assert_eq!(after(installed.clone(), &uninstall(&installed, false)), before);
    }

    #[test]
    fn a_package_that_goes_keeps_its_own_link_by_which_it_is_enabled_when_it_comes_back() {
        let packaged = State {
            packaged: Some((unit::PACKAGED[0], unit::TEXT.to_owned())),
            wanted: Some(unit::PACKAGED[1].into()),
            ..state()
        };
        assert_eq!(uninstall(&packaged, true).steps, []);
        assert_eq!(names(&uninstall(&packaged, false))[0], format!("remove {}", unit::WANTED));
        // What `install` has written goes in any case.
        let installed = after(state(), &install(&state()).unwrap());
        assert_eq!(uninstall(&installed, true).steps, uninstall(&installed, false).steps);
    }

    #[test]
    fn what_is_written_down_is_changed_before_systemd_is_told() {
        let conf = wsl_conf::with_ours(Some("[boot]\nsystemd=true\n"), US).unwrap();
        let both = State { wsl_conf: Some(conf), ..after(state(), &install(&state()).unwrap()) };
        let other_way = State { wsl_conf: Some("[boot]\nsystemd=false\n".into()), ..both.clone() };
        let fresh = State { unit: None, wanted: None, ..both.clone() };
        for plan in [uninstall(&both, false), install(&other_way).unwrap(), install(&fresh).unwrap()] {
            assert!(plan.steps.is_sorted_by_key(Step::is_about_now), "{:?}", names(&plan));
            assert!(names(&plan).iter().any(|name| name.ends_with(WSL_CONF)), "{:?}", names(&plan));
        }
        let expected = ["stop wsl-mirror.service", "daemon-reload"].map(|verb| format!("systemctl {verb}"));
        assert_eq!(names(&uninstall(&both, false))[3..], expected);
    }

    #[test]
    fn what_is_wrong_in_a_wsl_conf_without_us_keeps_nothing_from_being_taken_back() {
        let installed = after(state(), &install(&state()).unwrap());
        let expected = uninstall(&installed, false).steps;
        let nonsense = State { wsl_conf: Some("nonsense\n".into()), ..installed.clone() };
        let twice =
            State { wsl_conf: Some("[boot]\ncommand = a\ncommand = b\n".into()), ..installed.clone() };
        for state in [nonsense, twice] {
            let plan = uninstall(&state, false);
            assert_eq!((&plan.steps, &plan.refused), (&expected, &Vec::new()));
            assert!(plan.notes[0].contains("line") && plan.notes[0].contains("nothing of ours"), "{plan:?}");
        }
        // With us in it, somebody has to take us out; the rest is done.
        let conf = wsl_conf::with_ours(Some("[boot]\n"), US).unwrap() + "nonsense\n";
        let plan = uninstall(&State { wsl_conf: Some(conf), ..installed }, false);
        assert_eq!(plan.steps, expected);
        assert!(matches!(&*plan.refused, [why] if why.contains("line 4")), "{plan:?}");
    }

    #[test]
    fn a_wsl_conf_that_is_a_link_is_in_the_way_only_if_it_had_to_change() {
        let linked = |state: State| State { wsl_conf_link: Some("/nix/store/x".into()), ..state };
        assert_eq!(install(&linked(state())).unwrap(), install(&state()).unwrap());
        let error = install(&linked(without_systemd())).unwrap_err();
        assert!(error.to_string().contains("is a link to /nix/store/x"), "{error:#}");
        let installed = after(without_systemd(), &install(&without_systemd()).unwrap());
        assert_eq!(install(&linked(installed.clone())).unwrap().steps, []);
        let plan = uninstall(&linked(installed), false);
        assert_eq!((plan.steps.len(), plan.refused.len()), (0, 1), "{plan:?}");
        assert_eq!(uninstall(&linked(without_systemd()), false), uninstall(&without_systemd(), false));
    }

    #[test]
    fn where_no_systemd_ends_the_agent_uninstall_does() {
        let agent = Some(Running { pid: 7, replaced: None });
        let installed = after(without_systemd(), &install(&without_systemd()).unwrap());
        let running = State { agent: agent.clone(), ..installed };
        assert_eq!(names(&uninstall(&running, false)), ["write /etc/wsl.conf", "end the agent (process 7)"]);
        let by_hand = State { agent: agent.clone(), ..without_systemd() };
        assert_eq!(uninstall(&by_hand, false).steps, [Step::End { pid: 7 }]);
        // The unit's is stopped with it; another one is somebody's own, unless its program goes.
        let unit = State { agent: agent.clone(), ..after(state(), &install(&state()).unwrap()) };
        assert!(!uninstall(&unit, false).steps.contains(&Step::End { pid: 7 }));
        let by_hand = State { agent, ..state() };
        assert_eq!(uninstall(&by_hand, false).steps, []);
        assert_eq!(uninstall(&by_hand, true).steps, [Step::End { pid: 7 }]);
    }

    #[test]
    fn an_agent_whose_program_was_replaced_is_restarted() {
        let replaced = Some(Running { pid: 7, replaced: Some(US.into()) });
        let restart = [Step::Restart { pid: 7, program: US.into() }];
        let installed = after(without_systemd(), &install(&without_systemd()).unwrap());
        let old = State { agent: replaced.clone(), ..installed };
        let plan = install(&old).unwrap();
        assert_eq!((&*plan.steps, &*plan.notes), (&restart[..], &[][..]));
        assert_eq!(upgrade(&old), Plan { steps: restart.into(), ..Plan::default() });
        let unit = after(state(), &install(&state()).unwrap());
        let old = State { agent: replaced, ..unit.clone() };
        assert_eq!(
            install(&old).unwrap().steps,
            [Step::Systemctl(&["restart", "--no-block", unit::NAME])],
            "by systemd, which has started it"
        );
        let current = State { agent: Some(Running { pid: 7, replaced: None }), ..unit };
        assert_eq!(install(&current).unwrap().steps, []);
        assert_eq!(upgrade(&current), Plan::default());
    }
}
