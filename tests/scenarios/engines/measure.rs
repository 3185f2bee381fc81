//! Asks every cell.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::Result;
use wsl_mirror_lab::{
    Lab,
    checks::{HELLO, OrPanic as _},
    loopback, nat, pace, servers,
};

use super::cells::{Bound, Cell, Column, Outcome, Protocol, Server};

/// How long is waited for what may never come; an answer takes less than a hundredth of it.
const HANG: Duration = Duration::from_millis(700);
/// How often each cell is asked at first, at once: one that answers now and then shall not pass for either.
const ATTEMPTS: usize = 3;
/// So many requests of Linux' clients at least go to published ports in each column: four cells, [`ATTEMPTS`] each.
pub const LINUX_REQUESTS: u64 = 12;
/// How often a cell that answers is asked to find out how fast it is.
const ROUNDS: usize = 25;

/// The programs of the host and of Windows that cells ask, for as long as it lives.
pub struct Services {
    _servers: Vec<servers::Server>,
}

impl Services {
    #[track_caller]
    pub fn start(lab: &Lab) -> Self {
        let mut servers = Vec::new();
        for bound in Bound::ALL {
            let at = (bound.address(), Server::Host(bound).port());
            servers.push(servers::tcp_echo(lab.guest(), at).or_panic());
            servers.push(servers::udp_echo(lab.guest(), at).or_panic());
        }
        servers.push(servers::tcp_echo(lab.windows(), loopback(Server::Windows.port())).or_panic());
        servers.push(servers::udp_echo(lab.windows(), loopback(Server::Windows.port())).or_panic());
        Self { _servers: servers }
    }
}

/// All cells, as they are now. Connections of before are forgotten first: a client's port that comes again would go
/// the way that its flow went then.
#[track_caller]
pub fn column(lab: &Lab) -> Column {
    nat::conntrack_flush(lab.guest()).or_panic();
    let mut column = first_answers(lab);
    for (cell, outcome) in column.iter_mut().filter(|(_, outcome)| outcome.answers()) {
        *outcome = timed(lab, *cell);
    }
    column
}

/// Asks these cells again how fast they are, and keeps the better of the two medians: whoever else uses the machine
/// makes things slower, and nothing faster.
pub fn again(lab: &Lab, column: &mut Column, cells: &[Cell]) {
    for cell in cells {
        let now = timed(lab, *cell);
        if let Some(outcome) = column.get_mut(cell)
            && let (Some(before), Some(median)) = (outcome.median(), now.median())
        {
            *outcome = Outcome::Answers(before.min(median));
        }
    }
}

/// Asks everything at once: what hangs, hangs at the same time.
fn first_answers(lab: &Lab) -> Column {
    thread::scope(|scope| {
        let asked: Vec<_> = Cell::all()
            .flat_map(|cell| (0..ATTEMPTS).map(move |_| cell))
            .map(|cell| (cell, scope.spawn(move || ask(lab, cell))))
            .collect();
        let mut answers: BTreeMap<Cell, Vec<Result<Duration, String>>> = BTreeMap::new();
        for (cell, thread) in asked {
            let answer = thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
            answers.entry(cell).or_default().push(answer);
        }
        answers.into_iter().map(|(cell, answers)| (cell, outcome(answers))).collect()
    })
}

/// Asks one cell again and again, alone.
fn timed(lab: &Lab, cell: Cell) -> Outcome {
    let rounds = if pace::is_emulated() { ATTEMPTS } else { ROUNDS };
    outcome((0..rounds).map(|_| ask(lab, cell)).collect())
}

fn outcome(answers: Vec<Result<Duration, String>>) -> Outcome {
    let mut times: Vec<Duration> = answers.iter().flatten().copied().collect();
    times.sort();
    match answers.into_iter().find_map(Result::err) {
        Some(failure) if times.is_empty() => Outcome::Never(failure),
        Some(failure) => Outcome::Sometimes(failure),
        None => Outcome::Answers(times.get(times.len() / 2).copied().unwrap_or_default()),
    }
}

/// One request over a new flow, and how long it took to be connected, or over UDP to be answered.
fn ask(lab: &Lab, cell: Cell) -> Result<Duration, String> {
    let port = cell.server.port();
    let limit = pace::limit(HANG);
    match cell.protocol {
        Protocol::Tcp => {
            let client = cell.client.tcp(lab, port).limit(limit);
            client.connect_time(HELLO).map_err(|failure| failure.to_string())
        }
        Protocol::Udp => {
            let client = cell.client.udp(lab, port).limit(limit);
            client.round_trip(HELLO).map_err(|failure| failure.to_string())
        }
    }
}
