//! What is being done, on standard error: one line that lives on a terminal, plain lines in a pipe.

use std::{
    io::{self, IsTerminal as _},
    sync::{
        Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

/// How often the line on a terminal is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How often a pipe, which cannot be redrawn, hears that the work goes on.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// One step, as it goes on.
pub(crate) struct Step {
    detail: Mutex<String>,
}

impl Step {
    /// Says how far it is.
    pub(crate) fn set(&self, detail: String) {
        if let Ok(mut shown) = self.detail.lock() {
            *shown = detail;
        }
    }

    fn detail(&self) -> String {
        self.detail.lock().map(|detail| detail.clone()).unwrap_or_default()
    }
}

/// Does `work`, saying so. It stays on the calling thread: programs that it starts die with that thread.
pub(crate) fn step<T>(name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let terminal = io::stderr().is_terminal();
    let started = Instant::now();
    let step = Step { detail: Mutex::default() };
    if !terminal {
        eprintln!("{name} …");
    }
    let result = thread::scope(|scope| {
        let (done, until_done) = mpsc::channel::<()>();
        let shown = &step;
        scope.spawn(move || {
            let pause = if terminal { FRAME } else { HEARTBEAT };
            while until_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let (seconds, detail) = (started.elapsed().as_secs(), shown.detail());
                if terminal {
                    let line: String = format!("  {name} … {seconds} s  {detail}").chars().take(79).collect();
                    eprint!("\r\x1b[K{line}");
                } else {
                    eprintln!("{name} … {seconds} s  {detail}");
                }
            }
        });
        let result = work(shown);
        drop(done);
        result
    });
    if terminal {
        let sign = if result.is_ok() { "✓" } else { "✗" };
        eprintln!("\r\x1b[K{sign} {name}  {:.1} s", started.elapsed().as_secs_f32());
    }
    result
}
