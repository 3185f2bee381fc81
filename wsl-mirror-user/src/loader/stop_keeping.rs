//! The end of keeping connections on `lo`: no socket is marked any more, then the policy route rules go.

use anyhow::Result;
use wsl_mirror_core::abi::Settings;

use super::pins::Pins;
use super::state::{others, our_programs};
use super::{local_rules, maps};
use crate::errors::Errors;
use crate::exit::Exit;

/// Stops it, unless another distribution looks after the rules. Gives whether there were any rules. The caller holds the lock.
pub fn stop_keeping() -> Result<bool> {
    let pins = Pins::read()?;
    let mut errors = Errors::default();
    errors.keep(clear_mark(&pins));
    let others = errors.keep(our_programs(&pins).and_then(|own| others(&own)));
    let removed = others.and_then(|others| errors.keep(local_rules::remove(&others)));
    errors.into_failure(Exit::Kernel, "could not be taken away")?;
    Ok(removed.unwrap_or_default())
}

/// No socket is marked from here on.
fn clear_mark(pins: &Pins) -> Result<()> {
    if !pins.has("SETTINGS") {
        return Ok(());
    }
    let mut map = maps::SETTINGS.pinned()?;
    let settings = map.get()?;
    if settings.lo_mark == 0 { Ok(()) } else { map.set(Settings { lo_mark: 0, ..settings }) }
}
