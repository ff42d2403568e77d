// SPDX-License-Identifier: GPL-2.0

//! A mutex embedded in an object that C allocates.
//!
//! [`kernel::sync::Mutex`] owns what it protects and is initialised in place; the inode's mutex
//! protects nothing by itself but takes part in a two-lock protocol (see
//! [`crate::fs::address_space::Bindings`]).
//!
//! C header: [`include/linux/mutex.h`](srctree/include/linux/mutex.h)

use crate::bindings;
use kernel::types::Opaque;

/// A `struct mutex`.
#[repr(transparent)]
pub(crate) struct RawMutex(Opaque<bindings::mutex>);

impl RawMutex {
    /// Initialises the mutex at `this`.
    ///
    /// # Safety
    ///
    /// `this` must be valid for writes and not in use.
    pub(crate) unsafe fn init(this: *mut Self) {
        // SAFETY: By the contract of this function; the type is transparent.
        unsafe { bindings::gmem_mutex_init(this.cast()) }
    }

    /// Takes the mutex; sleeps.
    pub(crate) fn lock(&self) -> RawMutexGuard<'_> {
        // SAFETY: A reference to `RawMutex` is one to an initialised mutex.
        unsafe { bindings::mutex_lock(self.0.get()) };
        RawMutexGuard(self)
    }
}

/// A held [`RawMutex`]; dropping it unlocks.
pub(crate) struct RawMutexGuard<'a>(&'a RawMutex);

impl Drop for RawMutexGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: The guard exists only while this task holds the mutex.
        unsafe { bindings::mutex_unlock(self.0 .0.get()) }
    }
}
