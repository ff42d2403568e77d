// SPDX-License-Identifier: GPL-2.0

//! Checks whether anybody holds a folio, and drains the batches in which CPUs hold folios on their
//! way to the LRU lists.
//!
//! Draining the batches of all CPUs interrupts them. User space decides how often this is necessary:
//! it can have any number of files, with any number of pages held. So the rate is limited for the
//! module, not for a file.
//!
//! C header: [`include/linux/swap.h`](srctree/include/linux/swap.h)

use crate::{
    bindings,
    mm::folio::FolioRef,
    time::RateLimit,
    trace, //
};
use core::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use gmem_types::range::PageRange;
use kernel::{
    prelude::*,
    sync::{
        barrier::{
            smp_mb,
            Full, //
        },
        global_lock, //
    }, //
};

/// How far the batches were drained for one request: those of all CPUs at most once.
pub(crate) struct Drains(bindings::lru_cache_drained);

impl Drains {
    /// Nothing was drained.
    #[inline]
    pub(crate) const fn new() -> Self {
        Self(bindings::lru_cache_drained_LRU_CACHE_NOT_DRAINED)
    }

    /// How far it has come, as the trace event shows it.
    #[inline]
    pub(crate) fn level(&self) -> i32 {
        // CAST: A small enumeration.
        self.0 as i32
    }

    /// Drains for a folio with unexplained references: the batches of this CPU, then those of all
    /// CPUs if necessary. Returns whether it has drained, so that the references have to be checked
    /// again.
    ///
    /// Waits for its turn for at most about two intervals of the limit, however many tasks wait.
    /// The caller may not hold a folio lock.
    pub(crate) fn drain_for(&mut self, folio: &FolioRef<'_>) -> bool {
        let before = self.0;
        if before == bindings::lru_cache_drained_LRU_CACHE_DRAINED_ALL
            || !folio.has_unexplained_refs()
        {
            return false;
        }
        drain(folio, &mut self.0);
        self.0 != before
    }
}

impl FolioRef<'_> {
    /// Whether the folio has references that neither the page cache nor this walk explains, once the
    /// LRU batches are drained.
    pub(crate) fn is_held(&self, drains: &mut Drains) -> bool {
        drains.drain_for(self);
        self.has_unexplained_refs()
    }

    /// Unmaps and drains as far as necessary, and returns whether only the page cache and this walk
    /// hold the folio. `unmap` takes pages out of the host's page tables.
    pub(crate) fn settle(&self, drains: &mut Drains, unmap: impl Fn(&PageRange)) -> bool {
        // SAFETY: The batch holds a reference.
        if unsafe { bindings::gmem_folio_is_quiet(self.as_ptr(), Self::OWN_REFS) } {
            return true;
        }
        // Draining may have to wait, so the folio must not be locked.
        self.is_quiet(&unmap, None)
            || drains.drain_for(self) && self.is_quiet(&unmap, None)
            || self.is_quiet(&unmap, Some(drains))
    }

    /// The same without waiting for batches; the last check sends a trace event with its result.
    fn is_quiet(&self, unmap: impl Fn(&PageRange), last: Option<&Drains>) -> bool {
        // SAFETY: The batch holds a reference; the lock is given back below.
        unsafe { bindings::gmem_folio_lock(self.as_ptr()) };
        // SAFETY: As above.
        if unsafe { bindings::gmem_folio_mapped(self.as_ptr()) } {
            unmap(&self.pages());
        }
        // SAFETY: As above.
        let (mapped, unexplained) = unsafe {
            (
                bindings::gmem_folio_mapped(self.as_ptr()),
                bindings::gmem_folio_excess_refs(self.as_ptr(), Self::OWN_REFS),
            )
        };
        let quiet = !mapped && unexplained == 0;
        if let (false, Some(drains)) = (quiet, last) {
            trace::busy(|| (self.as_ptr(), unexplained, drains.level()));
        }
        // SAFETY: Locked above.
        unsafe { bindings::folio_unlock(self.as_ptr()) };
        quiet
    }
}

/// The number of the last drain that has begun.
static BEGUN: AtomicU64 = AtomicU64::new(0);

struct Clock {
    limit: RateLimit,
    /// The number of the last drain that went as far as all CPUs.
    done: u64,
}

global_lock! {
    // SAFETY: [`init`] is called before anything else.
    /// One for the module: a drain is of all CPUs, for any file.
    unsafe(uninit) static CLOCK: Mutex<Clock> = Clock {
        limit: RateLimit::new(),
        done: 0,
    };
}

/// Initialises the lock.
///
/// # Safety
///
/// Once, before any file is there.
pub(crate) unsafe fn init() {
    // SAFETY: By the contract of this function.
    unsafe { CLOCK.init() };
}

/// Drains the batches of this CPU for `folio`, or of all CPUs, and says so in `level`.
fn drain(folio: &FolioRef<'_>, level: &mut bindings::lru_cache_drained) {
    // The caller has seen the folio's references before it sees this number. With the barrier
    // below, a drain with a higher one finds them in the batches.
    smp_mb(Full);
    let seen = BEGUN.load(Ordering::Relaxed);

    let mut clock = CLOCK.lock();
    if clock.done > seen {
        // Another task's drain has begun and ended meanwhile, and serves this one. So a task does
        // not wait for a turn of each task before it.
        *level = bindings::lru_cache_drained_LRU_CACHE_DRAINED_ALL;
        return;
    }

    clock.limit.wait();
    let this = BEGUN.load(Ordering::Relaxed) + 1;
    BEGUN.store(this, Ordering::Relaxed);
    smp_mb(Full);
    folio.drain(level);
    if *level == bindings::lru_cache_drained_LRU_CACHE_DRAINED_ALL {
        clock.done = this;
    } else {
        // Draining this CPU was enough, which has no cost for others.
        clock.limit.give_back();
    }
}
