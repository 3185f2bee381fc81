//! `wsl-mirror log`

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use clap::Args;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use wsl_mirror_core::abi::Reason;

use crate::exit::{Exit, Failure};
use crate::host::require_root;
use crate::loader::pins::Pins;
use crate::loader::state;
use crate::output::{Output, Reader};

/// Arguments of `log`.
#[derive(Debug, Args)]
pub struct Log {}

impl Log {
    /// Shows the program's messages until Ctrl-C.
    #[expect(clippy::unused_self, reason = "every command is called alike")]
    pub fn exec(self, output: Output) -> Result<Exit> {
        require_root("read the program's log")?;
        let program = state::running_program(&Pins::read()?)?.ok_or_else(|| {
            Failure::new(Exit::NotLoaded, "nothing is loaded: run `wsl-mirror load --log debug`")
        })?;
        let output = Arc::new(Mutex::new(output));
        let logger = EbpfLogger::init_from_id_with_logger(program, Lines(Arc::clone(&output)))
            .with_context(|| format!("cannot read the log of program {program}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(follow(logger, &output))?;
        Ok(Exit::Success)
    }
}

async fn follow(logger: EbpfLogger<Lines>, output: &Mutex<Output>) -> Result<()> {
    // SAFETY: the logger's descriptor is the ring's, and the logger closes it only when it is dropped.
    let mut ring = unsafe { AsyncFd::register_with_interest(logger, tokio::io::Interest::READABLE) }
        .map_err(std::io::Error::from)?;
    // Listened to before the first message, so that none of them is missed while we write.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    ring.get_mut().flush();
    while reader(output) == Reader::Present {
        tokio::select! {
            ready = ring.readable_mut() => {
                let mut ready = ready?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
    Ok(())
}

fn reader(output: &Mutex<Output>) -> Reader {
    output.lock().unwrap_or_else(PoisonError::into_inner).reader()
}

/// Puts the reason's name in the place of its number, with which a message ends.
fn with_reason(message: &str) -> String {
    let named = message.rsplit_once(' ').and_then(|(rest, number)| {
        let reason = Reason::ALL.get(number.parse::<usize>().ok()?)?;
        Some(format!("{rest} {}", reason.name()))
    });
    named.unwrap_or_else(|| message.to_owned())
}

/// Writes each message on a line of its own.
struct Lines(Arc<Mutex<Output>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An output that cannot be written (a full disk) ends nothing: the next message may fit.
        let _ = output.line(&with_reason(&record.args().to_string()));
    }

    fn flush(&self) {}
}
