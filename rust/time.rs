// SPDX-License-Identifier: GPL-2.0

//! How long something takes.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::bindings;
use core::cell::Cell;
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
/// Not for several tasks at the same time; the holder of a lock has it.
pub(crate) struct RateLimit {
    /// Up to when all turns are taken.
    taken: Cell<u64>,
}

impl RateLimit {
    /// Turns that can be taken at once.
    const BURST: u64 = 256;

    /// Nanoseconds for a further turn.
    const INTERVAL: u64 = 1_000_000;

    /// All turns are free.
    pub(crate) const fn new() -> Self {
        Self {
            taken: Cell::new(0),
        }
    }

    /// Waits for a turn, for [`INTERVAL`](Self::INTERVAL) at most, and takes it; sleeps.
    pub(crate) fn wait(&self) {
        let now = Nanoseconds::now().0;
        let taken = self.taken.get().max(now).saturating_add(Self::INTERVAL);
        let ahead = taken - now;

        self.taken.set(taken);
        if let Some(wait) = ahead.checked_sub(Self::BURST * Self::INTERVAL) {
            // CAST: At most one interval.
            fsleep(Delta::from_nanos(wait as i64));
        }
    }
}
