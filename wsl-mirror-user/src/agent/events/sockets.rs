//! The ring into which the programs on the cgroup write each socket that is bound or handed on.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, MapInfo, RingBuf};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::loader::pins;

/// The ring's map.
const NAME: &str = "SOCKET_EVENTS";
/// The agent reads the ring at most once in so long: as long as something unread is in it, the kernel wakes nobody.
const PAUSE: Duration = Duration::from_millis(10);
/// A ring that is nearly full has lost events. Each takes 16 of its 64 KiB.
const NEARLY_FULL: usize = 4000;

/// What the programs have told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Cookies of sockets.
    pub cookies: Vec<u64>,
    /// Whether there may have been more.
    pub has_gaps: bool,
}

/// The ring, as long as it is there.
#[derive(Default)]
pub struct Sockets {
    ring: Option<Ring>,
    told: Told,
    pause_end: Option<Instant>,
}

struct Ring {
    id: u32,
    buffer: AsyncFd<RingBuf<MapData>>,
}

impl Sockets {
    /// Opens the pinned ring unless it is open. Gives whether another ring is open now.
    pub fn open(&mut self) -> Result<bool> {
        let path = pins::path(NAME);
        let id = MapInfo::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?.id();
        if self.ring.as_ref().is_some_and(|ring| ring.id == id) {
            return Ok(false);
        }
        let buffer = RingBuf::try_from(Map::RingBuf(pins::open_map(NAME)?))?;
        // SAFETY: the ring keeps its descriptor open, and the same, for as long as it is in there.
        let buffer = unsafe { AsyncFd::register_with_interest(buffer, tokio::io::Interest::READABLE) };
        let buffer = buffer.map_err(io::Error::from).context("cannot wait for sockets")?;
        self.ring = Some(Ring { id, buffer });
        Ok(true)
    }

    /// What was told since the last time.
    pub fn take(&mut self) -> Told {
        std::mem::take(&mut self.told)
    }

    /// Waits until sockets are told of. Cancel safe.
    pub async fn next(&mut self) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return std::future::pending().await };
        if let Some(end) = self.pause_end {
            tokio::time::sleep_until(end).await;
        }
        let mut ready = ring.buffer.readable_mut().await?;
        let before = self.told.cookies.len();
        let buffer = ready.get_inner_mut();
        while let Some(record) = buffer.next() {
            self.told.cookies.extend(record.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)));
        }
        ready.clear_ready();
        self.told.has_gaps |= self.told.cookies.len() - before >= NEARLY_FULL;
        self.pause_end = Some(Instant::now() + PAUSE);
        Ok(())
    }
}
