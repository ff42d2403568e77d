// SPDX-License-Identifier: GPL-2.0

//! Checks of the calling task during long work.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use crate::bindings;

/// Lets other tasks run; call it between folios of a long walk.
///
/// The kernel crate has no `cond_resched()`.
#[inline]
pub fn reschedule() {
    // SAFETY: Callers sleep anyway: they take the invalidate lock, print, or end an inode.
    unsafe { bindings::gmem_cond_resched() }
}

/// Whether the calling task is being killed. Work that can still return an error stops then.
///
/// The kernel crate has no `fatal_signal_pending()`.
#[inline]
pub(crate) fn is_killed() -> bool {
    // SAFETY: `current` is always valid.
    unsafe { bindings::gmem_killed() }
}

/// Whether the calling task has a signal to handle.
#[inline]
pub fn signal_pending() -> bool {
    kernel::current!().signal_pending()
}
