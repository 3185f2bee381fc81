//! The calls, all at once.

use std::{thread, time::Instant};

use wsl_mirror_lab::{Lab, Running, loopback, tcp, udp};

use super::{
    outcome::Outcome,
    promise::{CALLS, Call, Caller, Target},
};

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
