//! Packets that Windows dropped, by reason.

use wsl_mirror_windows::Dropped;

use crate::maps::COUNTERS;

/// Counts a packet that is dropped for this reason. Two CPUs at once may count one: tests ask whether there were any.
#[inline(always)]
pub fn count(reason: Dropped) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the element is aligned and lives as long as the map.
        unsafe { *counter += 1 };
    }
}
