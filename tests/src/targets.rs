//! Targets of listeners, read and written as the loader does: for listeners of the tests' own, which no engine holds.

use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, MapError, SkStorage};
use wsl_mirror_core::abi::Target;

use crate::{Namespace, pins};

type Targets = SkStorage<MapData, Target>;

fn open(guest: &Namespace) -> Result<Targets> {
    let map =
        guest.enter(|| MapData::from_pin(pins::path("SOCKET_TARGET"))).context("opening SOCKET_TARGET")?;
    Map::SkStorage(map).try_into().context("SOCKET_TARGET is no socket storage")
}

/// Gives a listener this target, in place of any other.
pub fn write(guest: &Namespace, listener: &impl AsRawFd, target: Target) -> Result<()> {
    open(guest)?.insert(listener, target, 0).context("writing a target")
}

/// The target of a listener.
pub fn read(guest: &Namespace, listener: &impl AsRawFd) -> Result<Option<Target>> {
    match open(guest)?.get(listener, 0) {
        Ok(target) => Ok(Some(target)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context("reading a target"),
    }
}

/// Takes a listener's target away, if it has one.
pub fn remove(guest: &Namespace, listener: &impl AsRawFd) -> Result<()> {
    if read(guest, listener)?.is_some() {
        open(guest)?.remove(listener).context("removing a target")?;
    }
    Ok(())
}
