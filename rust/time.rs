// SPDX-License-Identifier: GPL-2.0

//! How long something takes.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::bindings;

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
