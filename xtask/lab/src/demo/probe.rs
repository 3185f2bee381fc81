//! The calls, all at once.

use std::{thread, time::Instant};

use wsl_mirror_lab::{Running, checks};

use super::{
    outcome::Outcome,
    promise::{CALLS, Call, Caller, Target},
    scene::Scene,
};

/// All calls at once: those that hang do so together.
pub(super) fn call_all(scene: &Scene) -> Vec<Outcome> {
    thread::scope(|scope| {
        let calls = CALLS.map(|one| scope.spawn(move || call(scene, one)));
        let joined = calls.map(thread::ScopedJoinHandle::join);
        joined
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|_| Outcome::Other("panicked".into())))
            .collect()
    })
}

fn call(scene: &Scene, Call { caller, target, .. }: Call) -> Outcome {
    const REQUEST: &[u8] = b"is anybody there?";
    let lab = scene.lab(target.machine());
    let port = target.port();
    let (tcp, udp) = match caller {
        Caller::Windows => (checks::windows(lab, port), checks::windows_udp(lab, port)),
        Caller::Linux => (checks::linux(lab, port), checks::linux_udp(lab, port)),
    };
    let started = Instant::now();
    let answered = match target {
        Target::Udp | Target::UdpWithoutProxy => udp.request(REQUEST).map(drop).map_err(Outcome::from),
        Target::Web | Target::WebOnLoopback | Target::WebWithoutProxy => match tcp.http_get("/") {
            Ok(page) if page == Running::PAGE.as_bytes() => Ok(()),
            Ok(_) => Err(Outcome::Other("another page".into())),
            Err(failure) => Err(failure.into()),
        },
        Target::LinuxService | Target::WindowsService => tcp.echo(REQUEST).map(drop).map_err(Outcome::from),
    };
    answered.map_or_else(|failed| failed, |()| Outcome::Answered(started.elapsed()))
}
