// SPDX-License-Identifier: GPL-2.0

//! The invalidate lock of a file's mapping, and what only its holder may do.
//!
//! The code above gets a held lock as a reference, for the length of a call: it cannot keep it,
//! forget it, or hand it to another task.
//!
//! Lock order: `mmap_lock` -> invalidate lock -> bindings mutex, folio lock; `slots_lock` ->
//! invalidate lock -> `mmu_lock`. A task with a folio lock may take the bindings mutex, but must not
//! wait for the invalidate lock. So memory failure, which starts with a locked folio, does not
//! deadlock with conversion and hole punching. Moving a page also starts with a locked folio: it
//! takes the invalidate lock shared if that is possible at once, and gives up otherwise.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use crate::{
    attribute_map::{
        Reader,
        Reservation,
        Writer, //
    },
    bindings,
    fs::inode::GmemInode,
    mm::{
        drain::Drains,
        folio::Batches, //
    },
    task::{
        is_killed,
        reschedule, //
    }, //
};
use core::{
    iter,
    marker::PhantomData, //
};
use gmem_policy::plan::Attributes;
use gmem_types::{
    range::{
        PageIndex,
        PageRange, //
    },
    visibility::{
        Run,
        Visibility, //
    }, //
};
use kernel::{
    error::to_result,
    prelude::*,
    types::NotThreadSafe, //
};

mod sealed {
    use kernel::ffi::c_int;

    pub trait Mode {
        /// # Safety
        ///
        /// `mapping` must be valid.
        unsafe fn lock(mapping: *mut crate::bindings::address_space);

        /// As `lock`; returns 0, or an error if a signal that kills the task comes first.
        ///
        /// # Safety
        ///
        /// `mapping` must be valid.
        unsafe fn lock_killable(mapping: *mut crate::bindings::address_space) -> c_int;

        /// # Safety
        ///
        /// `mapping` must be valid, and locked by the calling task in this mode.
        unsafe fn unlock(mapping: *mut crate::bindings::address_space);
    }
}

/// Held for writing: attributes, folios and bindings stay as they are unless the holder changes
/// them.
pub enum Exclusive {}

/// Held for reading: attributes stay as they are, folios can be added.
pub enum Shared {}

impl sealed::Mode for Exclusive {
    #[inline]
    unsafe fn lock(mapping: *mut bindings::address_space) {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_invalidate_lock(mapping) }
    }

    #[inline]
    unsafe fn lock_killable(mapping: *mut bindings::address_space) -> c_int {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_invalidate_lock_killable(mapping) }
    }

    #[inline]
    unsafe fn unlock(mapping: *mut bindings::address_space) {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_invalidate_unlock(mapping) }
    }
}

impl sealed::Mode for Shared {
    #[inline]
    unsafe fn lock(mapping: *mut bindings::address_space) {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_invalidate_lock_shared(mapping) }
    }

    #[inline]
    unsafe fn lock_killable(mapping: *mut bindings::address_space) -> c_int {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_invalidate_lock_shared_killable(mapping) }
    }

    #[inline]
    unsafe fn unlock(mapping: *mut bindings::address_space) {
        // SAFETY: By the contract of this function.
        unsafe { bindings::gmem_invalidate_unlock_shared(mapping) }
    }
}

/// The held invalidate lock of one inode; dropping it unlocks.
pub struct InvalidateGuard<'a, M: sealed::Mode> {
    inode: &'a GmemInode,
    _mode: PhantomData<M>,
    _task: NotThreadSafe,
}

impl<'a, M: sealed::Mode> InvalidateGuard<'a, M> {
    /// Takes the lock; sleeps. No user memory may be touched while it is held.
    #[inline]
    pub(crate) fn new(inode: &'a GmemInode) -> Self {
        // SAFETY: The mapping of a live inode is valid.
        unsafe { M::lock(inode.mapping()) };
        // SAFETY: Locked just now.
        unsafe { Self::assume_locked(inode) }
    }

    /// As [`new`](Self::new), unless a signal that kills the task comes first.
    ///
    /// # Errors
    ///
    /// `EINTR`.
    #[inline]
    pub(crate) fn new_killable(inode: &'a GmemInode) -> Result<Self> {
        // SAFETY: The mapping of a live inode is valid.
        to_result(unsafe { M::lock_killable(inode.mapping()) })?;
        // SAFETY: Locked just now.
        Ok(unsafe { Self::assume_locked(inode) })
    }

    /// The guard of a lock that is held.
    ///
    /// # Safety
    ///
    /// This task must hold the lock in this mode, and not unlock it by other means.
    #[inline]
    unsafe fn assume_locked(inode: &'a GmemInode) -> Self {
        Self {
            inode,
            _mode: PhantomData,
            _task: NotThreadSafe,
        }
    }

    /// The inode that is locked.
    #[inline]
    pub fn inode(&self) -> &'a GmemInode {
        self.inode
    }
}

impl<M: sealed::Mode> Drop for InvalidateGuard<'_, M> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The guard exists only while this task holds the lock.
        unsafe { M::unlock(self.inode.mapping()) }
    }
}

impl<'a> InvalidateGuard<'a, Shared> {
    /// Takes the lock unless somebody has it exclusively or waits for it. Does not sleep, so that a
    /// folio may be locked.
    #[inline]
    pub(crate) fn try_new(inode: &'a GmemInode) -> Option<Self> {
        // SAFETY: The mapping of a live inode is valid.
        if !unsafe { bindings::gmem_invalidate_trylock_shared(inode.mapping()) } {
            return None;
        }
        // SAFETY: Locked just now.
        Some(unsafe { Self::assume_locked(inode) })
    }
}

/// Walks sleep; they let others run after each look.
impl<M: sealed::Mode> Attributes for InvalidateGuard<'_, M> {
    fn run_at(&self, at: PageIndex) -> Run {
        reschedule();
        // SAFETY: The map is written with the lock held exclusively only. This task holds it, and
        // does nothing else during the call.
        self.inode.run_for(at, unsafe { Reader::assume() })
    }
}

/// Why a step of a conversion failed, and because of which page.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// The error.
    pub error: Error,
    /// The first page that caused it.
    pub at: PageIndex,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

impl InvalidateGuard<'_, Exclusive> {
    #[inline]
    fn writer(&self) -> Writer<'_> {
        // SAFETY: The map is written with the invalidate lock held exclusively only.
        unsafe { Writer::assume() }
    }

    /// Allocates the nodes that storing `to` over `range` needs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EINVAL` if the file has no attribute map or the range leaves the file.
    pub(crate) fn reserve(&self, range: &PageRange, to: Visibility) -> Result<Reservation<'_>> {
        let map = self.inode.map().ok_or(EINVAL)?;
        if range.end().get() > self.inode.geometry().pages() {
            return Err(EINVAL);
        }
        map.reserve(self.writer(), range, to)
    }

    /// The folios of `range`, in batches, lowest first.
    #[inline]
    pub(crate) fn folios<'g>(&'g self, range: &PageRange) -> Batches<'g> {
        // SAFETY: The mapping lives as long as the inode, which the guard borrows.
        unsafe { Batches::new(self.inode.mapping(), *range) }
    }

    /// `range` from its first folio on; [`None`] if it has none.
    ///
    /// Where there is no folio there is nothing to unmap: a page table of the host or of a guest
    /// can have a page only while its folio is in the page cache, which it does not leave without
    /// being unmapped. So this bounds the cost of a request by what is allocated.
    pub(crate) fn populated(&self, range: &PageRange) -> Option<PageRange> {
        let mut first = range.start().get() as usize;
        let last = range.last().get() as usize;
        // SAFETY: The mapping is valid.
        if !unsafe { bindings::gmem_mapping_next(self.inode.mapping(), &mut first, last) } {
            return None;
        }
        // CAST: An index is an unsigned long, which has 64 bits here.
        PageRange::new(PageIndex::new(first as u64), range.end())
    }

    /// Returns `range` from its first folio with a reference other than the page cache's on. After
    /// many folios without one it may stop early, and return `range` from there on. [`None`] if
    /// there is no such folio.
    ///
    /// Takes no reference itself. The count also shows that no page table of the host has the page:
    /// a mapping has a reference until it is gone from the TLBs, and the fault that makes the
    /// mapping has the reference before.
    fn from_first_held(&self, range: &PageRange) -> Option<PageRange> {
        let mut first = range.start().get() as usize;
        let last = range.last().get() as usize;
        // SAFETY: The mapping is valid, and locked exclusively.
        if !unsafe { bindings::gmem_mapping_held(self.inode.mapping(), &mut first, last) } {
            return None;
        }
        // CAST: An index is an unsigned long, which has 64 bits here.
        PageRange::new(PageIndex::new(first as u64), range.end())
    }

    /// The runs of `range`, each clipped to it.
    pub(crate) fn runs(&self, range: &PageRange) -> impl Iterator<Item = Run> + Clone + '_ {
        let mut rest = Some(*range);

        iter::from_fn(move || {
            let here = rest?;
            if here.len() == 1 {
                rest = None;
                return Some(Run {
                    range: here,
                    // SAFETY: As for run_at().
                    visibility: self
                        .inode
                        .visibility_for(here.start(), unsafe { Reader::assume() }),
                });
            }
            let run = self.run_at(here.start());
            // A run without the requested page ends the walk.
            let range = run.range.intersect(&here)?;
            if !range.contains(here.start()) {
                return None;
            }
            rest = PageRange::new(range.end(), here.end());
            Some(Run { range, ..run })
        })
    }

    /// Whether all pages of `range`, which lies in the file, are `visibility`.
    pub(crate) fn is_all(&self, range: &PageRange, visibility: Visibility) -> bool {
        self.runs(range).all(|run| run.visibility == visibility)
    }

    /// Returns the parts of `pages` that are `visibility`; `all` if all of them are known to be.
    #[inline]
    pub(crate) fn parts(
        &self,
        pages: Option<PageRange>,
        visibility: Visibility,
        all: bool,
    ) -> impl Iterator<Item = PageRange> + Clone + '_ {
        let mut whole = pages.filter(|_| all);
        let mut runs = pages.filter(|_| !all).map(|pages| self.runs(&pages));

        // No nested adapters: the names of their functions are too long for kallsyms.
        iter::from_fn(move || {
            let Some(runs) = runs.as_mut() else {
                return whole.take();
            };
            loop {
                let run = runs.next()?;
                if run.visibility == visibility {
                    return Some(run.range);
                }
            }
        })
    }

    /// Takes `pages`, which are shared, away from the host. For as long as the lock is held, the host
    /// then has no mapping of them and nobody else a reference: host faults take the lock shared.
    ///
    /// First page tables, then the LRU batches (all CPUs at most once, and at a limited rate), then
    /// the count: the holder of any reference beyond the page cache's and ours may still write. A
    /// host fault that was served before the lock was taken holds the folio lock until its
    /// page table entry is in place, so the mapping is looked for again with the folio locked.
    ///
    /// # Errors
    ///
    /// `EAGAIN` with the first page that is held elsewhere, `EINTR` if the task is being killed. Host
    /// mappings are gone then, too; they fault back.
    #[inline]
    pub(crate) fn quiesce(
        &self,
        pages: impl Iterator<Item = PageRange> + Clone,
    ) -> Result<(), Refused> {
        for pages in pages.clone() {
            check_killed(pages.start())?;
            self.inode.unmap(&pages);
        }

        let mut drains = Drains::new();
        for pages in pages {
            let mut rest = Some(pages);
            while let Some(range) = rest {
                check_killed(range.start())?;
                let Some(held) = self.from_first_held(&range) else {
                    break;
                };
                rest = self.settle_some(&held, &mut drains)?;
                reschedule();
            }
        }
        Ok(())
    }

    /// Settles the first folios of `pages`; returns the pages behind them.
    #[inline(never)]
    fn settle_some(
        &self,
        pages: &PageRange,
        drains: &mut Drains,
    ) -> Result<Option<PageRange>, Refused> {
        let mut next = pages.end();
        if let Some(batch) = self.folios(pages).next_batch() {
            for folio in batch {
                if !folio.settle(drains, |pages| self.inode.unmap(pages)) {
                    let (error, at) = (EAGAIN, folio.pages().start());
                    return Err(Refused { error, at });
                }
                next = folio.pages().end();
            }
        }
        Ok(PageRange::new(next, pages.end()))
    }
}

/// Stops a step of a conversion that has come to the page `at`, if the task is being killed.
///
/// # Errors
///
/// `EINTR`.
#[inline]
pub(crate) fn check_killed(at: PageIndex) -> Result<(), Refused> {
    if is_killed() {
        let error = EINTR;
        return Err(Refused { error, at });
    }
    Ok(())
}

/// The attributes of a file cannot change while this exists.
///
/// For a file that converts in place this is the shared invalidate lock. The attributes of other
/// files never change, so nothing is locked for them.
pub struct Stable<'a> {
    inode: &'a GmemInode,
    _guard: Option<InvalidateGuard<'a, Shared>>,
}

impl<'a> Stable<'a> {
    /// Keeps the attributes as they are, unless a signal that kills the task comes first.
    ///
    /// # Errors
    ///
    /// `EINTR`.
    #[inline]
    pub(crate) fn new(inode: &'a GmemInode) -> Result<Self> {
        let guard = if inode.converts_in_place() {
            Some(InvalidateGuard::new_killable(inode)?)
        } else {
            None
        };
        Ok(Self {
            inode,
            _guard: guard,
        })
    }

    /// Keeps the attributes as they are, unless somebody is changing them. Does not sleep.
    #[inline]
    pub(crate) fn try_new(inode: &'a GmemInode) -> Option<Self> {
        if !inode.converts_in_place() {
            return Some(Self {
                inode,
                _guard: None,
            });
        }
        Some(Self {
            inode,
            _guard: Some(InvalidateGuard::try_new(inode)?),
        })
    }

    /// The same for a lock that is held.
    ///
    /// # Safety
    ///
    /// If the file converts in place, this task must hold the invalidate lock shared, and not unlock
    /// it by other means.
    #[inline]
    pub(crate) unsafe fn assume_locked(inode: &'a GmemInode) -> Self {
        Self {
            inode,
            _guard: inode
                .converts_in_place()
                // SAFETY: By the contract of this function.
                .then(|| unsafe { InvalidateGuard::assume_locked(inode) }),
        }
    }

    /// The inode.
    #[inline]
    pub fn inode(&self) -> &'a GmemInode {
        self.inode
    }

    /// Pages around `at` that are all the same, as far as the map finds them in one place.
    #[inline]
    pub(crate) fn run_at(&self, at: PageIndex) -> Run {
        // SAFETY: As for visibility().
        self.inode.run_for(at, unsafe { Reader::assume() })
    }

    /// Whether the page `at` is private or shared.
    #[inline]
    pub fn visibility(&self, at: PageIndex) -> Visibility {
        // SAFETY: The map is written with the invalidate lock held exclusively only, and this is
        // the shared lock. A file for which nothing is locked has no map.
        self.inode.visibility_for(at, unsafe { Reader::assume() })
    }
}

impl GmemInode {
    /// Takes the pages of `range` out of the host's page tables. Also removes the entries that memory
    /// failure leaves there for pages that it takes out itself.
    #[inline]
    pub(crate) fn unmap(&self, range: &PageRange) {
        // `even_cows`: only shared mappings of the file exist, which have no copies made on write,
        // but without it the entries of failed memory would stay.
        // SAFETY: The mapping is valid.
        unsafe {
            bindings::unmap_mapping_pages(
                self.mapping(),
                range.start().get() as usize,
                range.len() as usize,
                true,
            )
        }
    }
}

/// Taking the lock.
impl GmemInode {
    /// Calls `f` with the invalidate lock held for writing; sleeps. For callers that have to continue
    /// even if the task is being killed.
    #[inline]
    pub fn locked<R>(&self, f: impl FnOnce(&InvalidateGuard<'_, Exclusive>) -> R) -> R {
        f(&self.lock())
    }

    /// Calls `f` with the invalidate lock held for writing; sleeps.
    ///
    /// # Errors
    ///
    /// `EINTR` if a signal that kills the task comes first; those of `f`.
    #[inline]
    pub fn locked_killable<R, E: From<Error>>(
        &self,
        f: impl FnOnce(&InvalidateGuard<'_, Exclusive>) -> Result<R, E>,
    ) -> Result<R, E> {
        f(&InvalidateGuard::new_killable(self)?)
    }

    /// Calls `f` with the invalidate lock held for reading; sleeps.
    ///
    /// # Errors
    ///
    /// `EINTR` if a signal that kills the task comes first; those of `f`.
    #[inline]
    pub fn locked_shared<R, E: From<Error>>(
        &self,
        f: impl FnOnce(&InvalidateGuard<'_, Shared>) -> Result<R, E>,
    ) -> Result<R, E> {
        f(&InvalidateGuard::new_killable(self)?)
    }

    /// Calls `f` while the attributes stay as they are; sleeps.
    ///
    /// # Errors
    ///
    /// `EINTR` if a signal that kills the task comes first; those of `f`.
    #[inline]
    pub fn stable<R, E: From<Error>>(
        &self,
        f: impl FnOnce(&Stable<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        f(&Stable::new(self)?)
    }

    #[inline]
    pub(crate) fn lock(&self) -> InvalidateGuard<'_, Exclusive> {
        InvalidateGuard::new(self)
    }

    /// The mapping whose invalidate lock a fault takes, if it takes it.
    #[inline]
    pub(crate) fn fault_lock(&self) -> Option<*mut bindings::address_space> {
        self.converts_in_place().then(|| self.mapping())
    }
}
