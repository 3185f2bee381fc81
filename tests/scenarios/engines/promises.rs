//! What has to hold, as a function of what was measured.

use std::{fmt, time::Duration};

use super::{
    cells::{Cell, Client, Column, Columns, Outcome, Phase},
    configuration::Configuration,
    known,
};

/// What may not become slower by more than this, at the median.
const SLOWER: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// What answers without us answers with us.
    NothingBreaks,
    /// And connects as fast, but for [`SLOWER`].
    NothingIsSlower,
    /// Every published port answers a client on Windows.
    WindowsReachesEveryPort,
    /// Every port that docker-proxy serves answers a client in Linux, unless `known` explains why not.
    LinuxReachesDockerProxy,
    /// What is broken with us and without us is known, with its cause and a way out.
    WhatStaysBrokenIsExplained,
    /// Unloaded, everything is as before.
    UnloadLeavesNothing,
    /// Without us the lab shows what is known of the engine, or nothing that it shows means anything.
    TheLabIsRight,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NothingBreaks => "no cell that answers without us fails with us",
            Self::NothingIsSlower => "no cell is slower to connect by more than 2 ms at the median",
            Self::WindowsReachesEveryPort => "every Windows cell answers",
            Self::LinuxReachesDockerProxy => {
                "every Linux cell of Docker with its proxy answers, but under its raw drop"
            }
            Self::WhatStaysBrokenIsExplained => "what stays broken has a known cause and a way out",
            Self::UnloadLeavesNothing => "after `unload` every cell is as it was without us",
            Self::TheLabIsRight => "without us every cell is as it was measured before",
        })
    }
}

/// A promise not kept, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    pub cell: Cell,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.promise, self.cell, self.seen)
    }
}

/// What is not judged on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leniency {
    /// CPUs are emulated: times say nothing.
    pub times: bool,
    /// A kernel before 6.7, of which `known` says nothing.
    pub old_kernel: bool,
}

/// The cells of a phase that are slower than they may be.
pub fn slower(without: &Column, with: &Column) -> Vec<Cell> {
    let is_slower = |cell: &&Cell| {
        let median = |column: &Column| column.get(*cell).and_then(Outcome::median);
        median(without).zip(median(with)).is_some_and(|(without, with)| with > without + SLOWER)
    };
    without.keys().filter(is_slower).copied().collect()
}

/// Every promise that these cells break.
pub fn violations(configuration: &Configuration, columns: &Columns, leniency: Leniency) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (phase, with) in columns.with_us() {
        with_us(&mut violations, configuration, columns, (phase, with), leniency);
    }
    for (cell, without) in &columns.without {
        let mut violated = |promise, seen| violations.push(Violation { promise, cell: *cell, seen });
        let after = &columns.after[cell];
        if after.answers() != without.answers() {
            violated(
                Promise::UnloadLeavesNothing,
                format!("{} before, {} after", shown(without), shown(after)),
            );
        }
        if without.answers() != known::answers_without_us(configuration, *cell) && !leniency.old_kernel {
            violated(Promise::TheLabIsRight, shown(without));
        }
    }
    violations
}

/// Of the phases in which we are there.
fn with_us(
    violations: &mut Vec<Violation>,
    configuration: &Configuration,
    columns: &Columns,
    (phase, column): (Phase, &Column),
    leniency: Leniency,
) {
    let slower = slower(&columns.without, column);
    for (cell, without) in &columns.without {
        let mut violated = |promise, seen: String| {
            violations.push(Violation { promise, cell: *cell, seen: format!("{phase}: {seen}") });
        };
        let with = &column[cell];
        if without.answers() && !with.answers() {
            violated(Promise::NothingBreaks, shown(with));
        }
        if slower.contains(cell) && !leniency.times {
            let [before, now] = [without, with].map(|outcome| outcome.median().unwrap_or_default());
            violated(Promise::NothingIsSlower, format!("{now:.1?} instead of {before:.1?}"));
        }
        if !with.answers() && known::explanation(configuration, *cell).is_none() {
            match (cell.published(), cell.client) {
                (Some(_), Client::Windows) => violated(Promise::WindowsReachesEveryPort, shown(with)),
                (Some(_), Client::Linux) if configuration.is_served_by_docker_proxy() => {
                    violated(Promise::LinuxReachesDockerProxy, shown(with));
                }
                _ if !without.answers() => violated(Promise::WhatStaysBrokenIsExplained, shown(with)),
                _ => {}
            }
        }
    }
}

fn shown(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answers(_) => "answers".to_owned(),
        Outcome::Sometimes(failure) => format!("answers sometimes, else {failure}"),
        Outcome::Never(failure) => format!("fails: {failure}"),
    }
}

#[cfg(test)]
mod tests {
    use wsl_mirror_lab::NetworkBackend;

    use super::{
        super::{
            cells::{Bound, Protocol, Server},
            configuration::*,
        },
        *,
    };

    const STRICT: Leniency = Leniency { times: false, old_kernel: false };
    const FAST: Duration = Duration::from_micros(100);

    fn column(answers: impl Fn(Cell) -> bool) -> Column {
        let outcome = |cell| {
            if answers(cell) { Outcome::Answers(FAST) } else { Outcome::Never("no answer".to_owned()) }
        };
        Cell::all().map(|cell| (cell, outcome(cell))).collect()
    }

    fn proxy_on(release: Release, wslinfo: Wslinfo) -> Configuration {
        Configuration::docker(release, Proxy::On, wslinfo, Loopback0::BeforeDockerd)
    }

    fn netavark() -> Configuration {
        Configuration::podman(PODMAN_5_8, NetworkBackend::Netavark)
    }

    /// Without us as it is known to be, and with us as it has to be.
    fn as_promised(configuration: &Configuration) -> Columns {
        let without = column(|cell| known::answers_without_us(configuration, cell));
        let with =
            column(|cell| known::answers_without_us(configuration, cell) || cell.client == Client::Windows);
        Columns { after: without.clone(), without, load: with.clone(), direct: with.clone(), run: with }
    }

    fn promises(configuration: &Configuration, columns: &Columns) -> Vec<(Promise, Cell)> {
        let found = violations(configuration, columns, STRICT);
        found.into_iter().map(|violation| (violation.promise, violation.cell)).collect()
    }

    fn cell(client: Client, protocol: Protocol, server: Server) -> Cell {
        Cell { client, protocol, server }
    }

    const PUBLISHED: Server = Server::Container(Bound::Any);

    #[test]
    fn kept_promises_are_no_violations() {
        for configuration in [
            proxy_on(DOCKER_20_10, Wslinfo::Present),
            proxy_on(DOCKER_28_5, Wslinfo::Absent),
            Configuration::docker(DOCKER_28_5, Proxy::Off, Wslinfo::Absent, Loopback0::AfterDockerd),
            netavark(),
        ] {
            assert_eq!(violations(&configuration, &as_promised(&configuration), STRICT), []);
        }
    }

    #[test]
    fn a_cell_that_only_works_without_us_is_one() {
        let broken = cell(Client::Windows, Protocol::Udp, PUBLISHED);
        let mut columns = as_promised(&netavark());
        columns.run.insert(broken, Outcome::Sometimes("no reply".to_owned()));
        let expected = [(Promise::NothingBreaks, broken), (Promise::WindowsReachesEveryPort, broken)];
        assert_eq!(promises(&netavark(), &columns), expected);
    }

    #[test]
    fn a_cell_that_is_slower_is_one_unless_times_say_nothing() {
        let docker = proxy_on(DOCKER_20_10, Wslinfo::Present);
        let slow = cell(Client::Linux, Protocol::Tcp, PUBLISHED);
        let mut columns = as_promised(&docker);
        columns.load.insert(slow, Outcome::Answers(FAST + SLOWER));
        assert_eq!(promises(&docker, &columns), []);
        columns.load.insert(slow, Outcome::Answers(FAST + SLOWER + Duration::from_micros(1)));
        assert_eq!(promises(&docker, &columns), [(Promise::NothingIsSlower, slow)]);
        assert_eq!(violations(&docker, &columns, Leniency { times: true, ..STRICT }), []);
    }

    #[test]
    fn docker_answers_windows_under_its_raw_drop() {
        let raw_drop =
            |proxy| Configuration::docker(DOCKER_28_5, proxy, Wslinfo::Absent, Loopback0::BeforeDockerd);
        for (proxy, cells) in [(Proxy::On, 4), (Proxy::Off, 2)] {
            let docker = raw_drop(proxy);
            let mut columns = as_promised(&docker);
            columns.load = columns.without.clone();
            let found = promises(&docker, &columns);
            assert_eq!(found.len(), cells, "{found:?}");
            assert!(
                found.iter().all(|(promise, _)| *promise == Promise::WindowsReachesEveryPort),
                "{found:?}"
            );
        }
    }

    #[test]
    fn docker_with_its_proxy_answers_linux_without_a_raw_drop() {
        let docker = proxy_on(DOCKER_20_10, Wslinfo::Absent);
        let silent = cell(Client::Linux, Protocol::Tcp, PUBLISHED);
        let mut columns = as_promised(&docker);
        columns.run.insert(silent, Outcome::Never("no answer".to_owned()));
        let expected = [(Promise::NothingBreaks, silent), (Promise::LinuxReachesDockerProxy, silent)];
        assert_eq!(promises(&docker, &columns), expected);
    }

    #[test]
    fn what_is_broken_for_no_known_reason_is_one() {
        let silent = cell(Client::Linux, Protocol::Tcp, Server::Windows);
        let mut columns = as_promised(&netavark());
        let Columns { without, load, run, direct, after } = &mut columns;
        for column in [without, load, run, direct, after] {
            column.insert(silent, Outcome::Never("refused".to_owned()));
        }
        let unexplained = (Promise::WhatStaysBrokenIsExplained, silent);
        let expected = [unexplained, unexplained, unexplained, (Promise::TheLabIsRight, silent)];
        assert_eq!(promises(&netavark(), &columns), expected);
        let lenient = violations(&netavark(), &columns, Leniency { old_kernel: true, ..STRICT });
        assert_eq!(lenient.len(), 3, "{lenient:?}");
    }

    #[test]
    fn what_an_unload_leaves_behind_is_one() {
        let docker = proxy_on(DOCKER_20_10, Wslinfo::Present);
        let columns = as_promised(&docker);
        let columns = Columns { after: columns.run.clone(), ..columns };
        let found = promises(&docker, &columns);
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|(promise, _)| *promise == Promise::UnloadLeavesNothing), "{found:?}");
    }
}
