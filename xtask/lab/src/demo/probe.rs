//! One call, and what came of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use wsl_mirror_lab::{Lab, Running, loopback, tcp, udp};

use super::promise::{CALLS, Call, Caller, Target};

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The right answer, and how long it took from the first packet on.
    Answered(Duration),
    /// Nothing, for longer than a retransmission takes.
    Hung,
    /// Nobody is there.
    Refused,
    /// Whatever else.
    Other(String),
}

impl From<tcp::Failure> for Outcome {
    fn from(failure: tcp::Failure) -> Self {
        match failure {
            tcp::Failure::ConnectTimedOut | tcp::Failure::Stalled { .. } => Self::Hung,
            tcp::Failure::Refused => Self::Refused,
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<udp::Failure> for Outcome {
    fn from(failure: udp::Failure) -> Self {
        match failure {
            udp::Failure::TimedOut => Self::Hung,
            udp::Failure::Refused => Self::Refused,
            other => Self::Other(other.to_string()),
        }
    }
}

/// All calls at once: those that hang do so together.
pub(super) fn call_all(lab: &Lab) -> Vec<Outcome> {
    thread::scope(|scope| {
        let calls = CALLS.map(|one| scope.spawn(move || call(lab, one)));
        let joined = calls.map(thread::ScopedJoinHandle::join);
        joined
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|_| Outcome::Other("panicked".into())))
            .collect()
    })
}

fn call(lab: &Lab, Call { caller, target, .. }: Call) -> Outcome {
    const REQUEST: &[u8] = b"is anybody there?";
    let from = match caller {
        Caller::Windows => lab.windows(),
        Caller::Linux => lab.guest(),
    };
    let to = loopback(target.port());
    let started = Instant::now();
    let answered = match target {
        Target::Udp => udp::Client::new(from, to).request(REQUEST).map(drop).map_err(Outcome::from),
        Target::Web | Target::WebOnLoopback => match tcp::Client::new(from, to).http_get("/") {
            Ok(page) if page == Running::PAGE.as_bytes() => Ok(()),
            Ok(_) => Err(Outcome::Other("another page".into())),
            Err(failure) => Err(failure.into()),
        },
        Target::LinuxService | Target::WindowsService => {
            tcp::Client::new(from, to).echo(REQUEST).map(drop).map_err(Outcome::from)
        }
    };
    answered.map_or_else(|failed| failed, |()| Outcome::Answered(started.elapsed()))
}
