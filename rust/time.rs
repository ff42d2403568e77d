// SPDX-License-Identifier: GPL-2.0

//! A rate limit.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::bindings;
use kernel::time::{
    delay::fsleep,
    Delta, //
};

/// A rate limit: [`BURST`](Self::BURST) turns at once, then one turn per
/// [`INTERVAL`](Self::INTERVAL).
///
/// Its user protects it by a lock.
pub(crate) struct RateLimit {
    /// The time up to which all turns are taken.
    taken: u64,
}

impl RateLimit {
    /// Turns that can be taken at once.
    const BURST: u64 = 256;

    /// Nanoseconds for a further turn.
    const INTERVAL: u64 = 1_000_000;

    /// All turns are free.
    pub(crate) const fn new() -> Self {
        Self { taken: 0 }
    }

    /// Waits for a turn, for [`INTERVAL`](Self::INTERVAL) at most, and takes it; sleeps.
    pub(crate) fn wait(&mut self) {
        // The kernel crate's Instant cannot be set to a later time, which this limit needs.
        // SAFETY: Reads the clock.
        let now = unsafe { bindings::ktime_get_mono_fast_ns() };
        self.taken = self.taken.max(now).saturating_add(Self::INTERVAL);
        let ahead = self.taken - now;

        if let Some(wait) = ahead.checked_sub(Self::BURST * Self::INTERVAL) {
            // CAST: At most one interval.
            fsleep(Delta::from_nanos(wait as i64));
        }
    }

    /// Gives back a turn that was not needed.
    pub(crate) fn give_back(&mut self) {
        self.taken = self.taken.saturating_sub(Self::INTERVAL);
    }
}
