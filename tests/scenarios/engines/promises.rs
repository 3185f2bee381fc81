//! What has to hold, as a function of what was measured.

use std::{fmt, time::Duration};

use super::{
    cells::{Cell, Column, Columns, Outcome, Phase},
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
    /// With us every cell answers, clients on Windows and in Linux alike.
    EveryCellAnswers,
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
            Self::EveryCellAnswers => "every cell answers, Windows or Linux",
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
        with_us(&mut violations, &columns.without, (phase, with), leniency);
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
    without: &Column,
    (phase, column): (Phase, &Column),
    leniency: Leniency,
) {
    let slower = slower(without, column);
    for (cell, without) in without {
        let mut violated = |promise, seen: String| {
            violations.push(Violation { promise, cell: *cell, seen: format!("{phase}: {seen}") });
        };
        let with = &column[cell];
        match (without.answers(), with.answers()) {
            (true, false) => violated(Promise::NothingBreaks, shown(with)),
            (false, false) => violated(Promise::EveryCellAnswers, shown(with)),
            (_, true) => {}
        }
        if slower.contains(cell) && !leniency.times {
            let [before, now] = [without, with].map(|outcome| outcome.median().unwrap_or_default());
            violated(Promise::NothingIsSlower, format!("{now:.1?} instead of {before:.1?}"));
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
            cells::{Bound, Client, Protocol, Server},
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
        let with = column(|_| true);
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
        assert_eq!(promises(&netavark(), &columns), [(Promise::NothingBreaks, broken)]);
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
    fn a_phase_as_without_us_is_one_by_every_silent_cell() {
        let raw_drop =
            |proxy| Configuration::docker(DOCKER_28_5, proxy, Wslinfo::Absent, Loopback0::BeforeDockerd);
        for (configuration, windows, linux) in [
            (raw_drop(Proxy::On), 4, 2),
            (raw_drop(Proxy::Off), 2, 4),
            (proxy_on(DOCKER_20_10, Wslinfo::Absent), 4, 0),
            (netavark(), 0, 4),
        ] {
            let mut columns = as_promised(&configuration);
            columns.load = columns.without.clone();
            let found = promises(&configuration, &columns);
            let count = |client| found.iter().filter(|(_, cell)| cell.client == client).count();
            assert_eq!((count(Client::Windows), count(Client::Linux)), (windows, linux), "{found:?}");
            assert!(found.iter().all(|(promise, _)| *promise == Promise::EveryCellAnswers), "{found:?}");
        }
    }

    #[test]
    fn a_program_of_the_host_that_never_answers_is_one() {
        let silent = cell(Client::Linux, Protocol::Tcp, Server::Windows);
        let mut columns = as_promised(&netavark());
        let Columns { without, load, run, direct, after } = &mut columns;
        for column in [without, load, run, direct, after] {
            column.insert(silent, Outcome::Never("refused".to_owned()));
        }
        let fails = (Promise::EveryCellAnswers, silent);
        let expected = [fails, fails, fails, (Promise::TheLabIsRight, silent)];
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
