// SPDX-License-Identifier: GPL-2.0

//! How long something takes.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::bindings;
use kernel::time::{
    delay::fsleep,
    Delta, //
};

/// A moment, in nanoseconds since boot.
#[derive(Clone, Copy)]
pub struct Nanoseconds(u64);

impl Nanoseconds {
    /// This one.
    #[inline]
    pub fn now() -> Self {
        // SAFETY: Reads the clock.
        Self(unsafe { bindings::ktime_get_mono_fast_ns() })
    }

    /// How many have passed since.
    #[inline]
    pub fn elapsed(self) -> u64 {
        Self::now().0.saturating_sub(self.0)
    }
}

/// How often something is done: [`BURST`](Self::BURST) times at once, then one time for each
/// [`INTERVAL`](Self::INTERVAL).
///
/// Whoever has the lock that it is behind takes turns.
pub(crate) struct RateLimit {
    /// Up to when all turns are taken.
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
        let now = Nanoseconds::now().0;
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
