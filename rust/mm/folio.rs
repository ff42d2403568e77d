// SPDX-License-Identifier: GPL-2.0

//! Folios, as a walk over a page cache finds them, and the record that is kept with each.
//!
//! guest_memfd allocates single pages. The code here also works for larger folios: functions that
//! walk a range clamp to it.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use crate::{
    bindings,
    kvm::vm::{
        Gfn,
        Pfn, //
    },
    task::reschedule, //
};
use core::{
    marker::PhantomData,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
    ptr::NonNull,
    slice, //
};
use gmem_types::range::{
    PageIndex,
    PageRange, //
};
use kernel::prelude::*;

/// The pages of a folio in the file.
///
/// # Safety
///
/// `folio` must be valid and in the page cache.
#[inline]
unsafe fn pages_of(folio: *mut bindings::folio) -> Option<PageRange> {
    // SAFETY: By the contract of this function.
    // CAST: An index is an unsigned long, which has 64 bits here.
    let (start, len) = unsafe {
        (
            bindings::gmem_folio_index(folio) as u64,
            bindings::gmem_folio_nr_pages(folio) as u64,
        )
    };
    PageRange::new(
        PageIndex::new(start),
        PageIndex::new(start.checked_add(len)?),
    )
}

/// To whom a page was given, as recorded with the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Where the guest sees it.
    pub gfn: Gfn,
    /// Which guest.
    pub asid: u32,
}

/// A page for the platforms: a frame, and its record.
///
/// The record is one word in the folio (`folio->private`, which page caches without buffers do not
/// use). It exists from the first time that the page is given to a platform until the page is
/// freed, and needs no memory of its own.
///
/// Only in files whose pages are no platform's ([`has_large_folios`]) is a folio more than the page.
/// There the frame is that of its first page, and [`all`](Self::all) has the others.
///
/// [`has_large_folios`]: crate::kvm::platform::has_large_folios
///
/// # Invariants
///
/// The folio is valid for as long as `'a`, and nobody else looks at the word: it is either locked,
/// or the invalidate lock of a file that converts in place is held exclusively, or it is being
/// freed. It has the page with the number `page`.
pub struct Frame<'a> {
    folio: NonNull<bindings::folio>,
    page: u64,
    _folio: PhantomData<&'a ()>,
}

/// The page was given to a guest; the rest of the word says which and where.
// CAST: A bit of a small number.
const ASSIGNED: u64 = bindings::GMEM_RECORD_ASSIGNED as u64;
/// Set between asking and zapping: the page was in the S-EPT.
const WAS_IN_SEPT: u64 = 1 << 1;
/// A software model has the page's state.
const MODEL: u64 = 1 << 2;
/// The page was lost to the platform for good.
const LEAKED: u64 = 1 << 3;
/// The page is zero, and the host had no means to write to it since: a hypervisor that gives it to a
/// guest makes sure of it.
// CAST: As above.
const ZERO: u64 = bindings::GMEM_RECORD_ZERO as u64;
/// The page has failed, and a hypervisor may have it for ever.
// CAST: As above.
const RETIRED: u64 = bindings::GMEM_RECORD_RETIRED as u64;
/// The page has failed, and memory failure keeps a reference to it.
// CAST: As above.
const FAILED: u64 = bindings::GMEM_RECORD_FAILED as u64;
/// Where the gfn is: 40 bits, which is all that a 52-bit physical address has.
const GFN_SHIFT: u32 = 7;
const GFN_BITS: u32 = 40;
/// Where the ASID is, in the remaining 17 bits.
const ASID_SHIFT: u32 = GFN_SHIFT + GFN_BITS;
const ASSIGNMENT: u64 = ASSIGNED | !0 << GFN_SHIFT;

impl Frame<'_> {
    /// # Safety
    ///
    /// `folio` must satisfy the type's invariants for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw(folio: NonNull<bindings::folio>) -> Self {
        // INVARIANT: By the contract of this function. Each folio has a first page.
        Self {
            folio,
            page: 0,
            _folio: PhantomData,
        }
    }

    /// All pages of the folio, which has one record.
    #[inline]
    pub(crate) fn all(&self) -> impl Iterator<Item = Frame<'_>> {
        // SAFETY: By the type's invariants.
        // CAST: A long has 64 bits here.
        let pages = unsafe { bindings::gmem_folio_nr_pages(self.folio.as_ptr()) as u64 };

        // INVARIANT: The folio has as many pages.
        (0..pages).map(|page| Frame {
            folio: self.folio,
            page,
            _folio: PhantomData,
        })
    }

    #[inline]
    fn word(&self) -> u64 {
        // SAFETY: By the type's invariants.
        // CAST: A long has 64 bits here.
        unsafe { bindings::gmem_folio_record(self.folio.as_ptr()) as u64 }
    }

    /// Clears bits of the word and sets others, atomically: memory failure has the folio lock, a
    /// conversion the invalidate lock.
    #[inline]
    fn change(&self, out: u64, into: u64) {
        // SAFETY: By the type's invariants.
        // CAST: A long has 64 bits here.
        unsafe {
            bindings::gmem_folio_change_record(self.folio.as_ptr(), out as usize, into as usize)
        }
    }

    #[inline]
    fn set(&self, bit: u64, on: bool) {
        self.change(bit, if on { bit } else { 0 });
    }

    /// The host's frame.
    #[inline]
    pub fn pfn(&self) -> Pfn {
        // SAFETY: By the type's invariants.
        Pfn::new(unsafe { bindings::gmem_folio_pfn(self.folio.as_ptr()) } + self.page)
    }

    /// Whether the page has a record of what platforms have done with it.
    #[inline]
    pub(crate) fn is_known(&self) -> bool {
        self.word() & !FAILED != 0
    }

    /// Returns to whom the page was given, if it was given to anybody.
    pub fn assignment(&self) -> Option<Assignment> {
        let word = self.word();
        (word & ASSIGNED != 0).then_some(Assignment {
            gfn: Gfn::new(word >> GFN_SHIFT & ((1 << GFN_BITS) - 1)),
            // CAST: 17 bits are left.
            asid: (word >> ASID_SHIFT) as u32,
        })
    }

    /// Records to whom the page was given.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what no such guest can have.
    pub fn record(&self, to: Assignment) -> Result {
        let asid = u64::from(to.asid);
        if to.gfn.get() >> GFN_BITS != 0 || asid >> (u64::BITS - ASID_SHIFT) != 0 {
            return Err(EINVAL);
        }
        self.change(
            ASSIGNMENT,
            ASSIGNED | to.gfn.get() << GFN_SHIFT | asid << ASID_SHIFT,
        );
        Ok(())
    }

    /// Clears the record of the owner: the page was given back.
    pub fn forget(&self) {
        self.change(ASSIGNMENT, 0);
    }

    /// Clears the record when the page is freed.
    pub(crate) fn clear(&self) {
        self.change(!0, 0);
    }

    pub(crate) fn was_in_sept(&self) -> bool {
        self.word() & WAS_IN_SEPT != 0
    }

    pub(crate) fn mark_in_sept(&self, is: bool) {
        if self.was_in_sept() != is {
            self.set(WAS_IN_SEPT, is);
        }
    }

    /// Remembers whether the page is zero and out of the host's reach, which it is not while
    /// somebody has it mapped or pinned.
    #[inline]
    pub(crate) fn mark_zero(&self, is: bool) {
        if (self.word() & ZERO != 0) != is {
            self.set(ZERO, is);
        }
    }

    /// Keeps a page whose memory has failed from ever being freed.
    pub(crate) fn retire(&self) {
        if self.word() & RETIRED == 0 {
            self.set(RETIRED, true);
            // SAFETY: By the type's invariants.
            unsafe { bindings::gmem_folio_get(self.folio.as_ptr()) }
        }
    }

    /// Records that memory failure keeps a reference to the page for as long as the page is marked as
    /// failed.
    pub(crate) fn mark_failed(&self) {
        self.set(FAILED, true);
    }

    /// Whether the record ties the page to its frame: it was lost, or it has failed. Nothing else does:
    /// what a platform or a model has, it may move, or the file has no pages that move.
    pub(crate) fn is_tied(&self) -> bool {
        self.word() & (LEAKED | RETIRED | FAILED) != 0
    }

    /// Whether a software model has the page's state.
    pub fn is_model(&self) -> bool {
        self.word() & MODEL != 0
    }

    /// Remembers that a software model has the page's state, until it is freed.
    #[cfg(CONFIG_KVM_GMEM_EMULATION)]
    pub(crate) fn set_model(&self) {
        self.set(MODEL, true);
    }

    /// Whether the page was lost to the platform.
    pub fn is_leaked(&self) -> bool {
        self.word() & LEAKED != 0
    }

    /// Marks the page as lost: the platform did not give it back, so nobody may ever get it again.
    pub fn leak(&self) {
        if !self.is_leaked() {
            self.set(LEAKED, true);
            // SAFETY: By the type's invariants.
            unsafe {
                bindings::gmem_folio_get(self.folio.as_ptr());
                bindings::gmem_warn_leak(self.pfn().get(), self.is_model());
            }
        }
    }
}

/// A page with a reference to it, on its way to KVM.
pub(crate) struct PageRef(*mut bindings::page);

impl PageRef {
    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// The caller gives up a reference to the page, which is in a page cache.
    #[inline]
    pub(crate) unsafe fn from_raw(page: *mut bindings::page) -> Self {
        Self(page)
    }

    /// The host's frame.
    #[inline]
    pub(crate) fn pfn(&self) -> Pfn {
        // SAFETY: The reference keeps the page.
        Pfn::new(unsafe { bindings::gmem_page_pfn(self.0) })
    }

    /// Marks the page's folio up to date: somebody has filled it.
    #[inline]
    pub(crate) fn mark_uptodate(&self) {
        // SAFETY: The reference keeps the page.
        unsafe { bindings::gmem_page_mark_uptodate(self.0) }
    }

    /// Calls `f` with the frame of the page, locked for the call; sleeps.
    #[inline]
    pub(crate) fn with_frame<R>(&self, f: impl FnOnce(&Frame<'_>) -> R) -> R {
        // SAFETY: The reference keeps the page, which is a folio of its own.
        let folio = unsafe { NonNull::new_unchecked(bindings::gmem_page_folio(self.0)) };
        // SAFETY: As above; the lock is given back below.
        unsafe { bindings::gmem_folio_lock(folio.as_ptr()) };
        // SAFETY: The folio is valid and locked.
        let result = f(&unsafe { Frame::from_raw(folio) });
        // SAFETY: Locked above.
        unsafe { bindings::folio_unlock(folio.as_ptr()) };
        result
    }

    /// Hands the reference over.
    #[inline]
    pub(crate) fn into_raw(self) -> *mut bindings::page {
        ManuallyDrop::new(self).0
    }
}

impl Drop for PageRef {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::gmem_put_page(self.0) }
    }
}

/// A walk over the folios of a range, a batch at a time.
pub(crate) struct Batches<'g> {
    mapping: *mut bindings::address_space,
    range: PageRange,
    next: usize,
    /// Initialised if the field below says so. It is large, and should not be moved.
    batch: MaybeUninit<bindings::folio_batch>,
    has_batch: bool,
    _guard: PhantomData<&'g ()>,
}

impl<'g> Batches<'g> {
    /// Starts a walk.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid, and no folio may leave it, for as long as `'g`.
    #[inline]
    pub(crate) unsafe fn new(mapping: *mut bindings::address_space, range: PageRange) -> Self {
        Self {
            mapping,
            range,
            next: range.start().get() as usize,
            batch: MaybeUninit::uninit(),
            has_batch: false,
            _guard: PhantomData,
        }
    }

    /// The next folios, [`None`] at the end. Reschedules between batches.
    pub(crate) fn next_batch(&mut self) -> Option<impl Iterator<Item = FolioRef<'_>> + '_> {
        let batch = self.batch.as_mut_ptr();
        let last = self.range.last().get() as usize;
        if self.has_batch {
            self.release();
            reschedule();
        }
        // There was nothing behind the last batch.
        if self.next > last {
            return None;
        }
        // SAFETY: Valid for writes.
        unsafe { bindings::gmem_folio_batch_init(batch) };
        self.has_batch = true;
        // SAFETY: The mapping is valid, the batch initialised and empty.
        let found =
            unsafe { bindings::filemap_get_folios(self.mapping, &mut self.next, last, batch) };
        if found == 0 {
            return None;
        }

        let range = self.range;
        // SAFETY: So many folios of the batch are initialised, and stay so as long as it is borrowed.
        let folios = unsafe {
            slice::from_raw_parts(
                (&raw const (*batch).folios).cast::<*mut bindings::folio>(),
                usize::from((*batch).nr),
            )
        };
        Some(folios.iter().filter_map(move |&folio| {
            Some(FolioRef {
                // SAFETY: The batch holds a reference to each of its folios, and the folio stays in
                // the page cache.
                pages: unsafe { pages_of(folio) }?.intersect(&range)?,
                // SAFETY: As above.
                first: unsafe { pages_of(folio) }?.start(),
                folio: NonNull::new(folio)?,
                _batch: PhantomData,
            })
        }))
    }

    fn release(&mut self) {
        self.has_batch = false;
        // SAFETY: The batch is initialised, as callers have seen; its references are ours.
        unsafe { bindings::gmem_folio_batch_release(self.batch.as_mut_ptr()) }
    }
}

impl Drop for Batches<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.has_batch {
            self.release();
        }
    }
}

/// One folio of a walk under the exclusive invalidate lock, and its pages that lie in the range.
pub struct FolioRef<'b> {
    folio: NonNull<bindings::folio>,
    first: PageIndex,
    pages: PageRange,
    _batch: PhantomData<&'b ()>,
}

impl FolioRef<'_> {
    /// References that the walk has.
    pub(super) const OWN_REFS: u32 = 1;

    #[inline]
    pub(super) fn as_ptr(&self) -> *mut bindings::folio {
        self.folio.as_ptr()
    }

    /// The frame of the page, with its record.
    #[inline]
    pub fn frame(&self) -> Frame<'_> {
        // SAFETY: The batch holds a reference; walks are made under the exclusive invalidate lock.
        unsafe { Frame::from_raw(self.folio) }
    }

    /// The folio's pages that lie in the walk's range.
    #[inline]
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Whether the folio was ever used: zeroed, then perhaps written. A folio that was never used
    /// holds stale bytes that nobody may see, and is left alone.
    #[inline]
    pub fn is_allocated(&self) -> bool {
        // SAFETY: The batch holds a reference.
        unsafe { bindings::gmem_folio_uptodate(self.as_ptr()) }
    }

    /// The first page that lies in the range and whose memory has failed.
    #[inline]
    pub fn poisoned(&self) -> Option<PageIndex> {
        let (first, pages) = (self.first.get(), self.pages);
        // SAFETY: The batch holds a reference, and the pages are the folio's.
        let found = unsafe {
            bindings::gmem_folio_hwpoison(
                self.as_ptr(),
                (pages.start().get() - first) as usize,
                pages.len() as usize,
            )
        };
        // CAST: The number of a page of the folio.
        let found = PageIndex::new(first + found as u64);
        (found < pages.end()).then_some(found)
    }

    /// Drains LRU batches as far as necessary to explain the folio's references.
    #[inline]
    pub(crate) fn drain(&self, level: &mut bindings::lru_cache_drained) {
        // SAFETY: The batch holds a reference; `level` starts as the function wants it.
        unsafe { bindings::gmem_folio_drain(self.as_ptr(), Self::OWN_REFS, level) }
    }

    /// Whether there are references that neither the page cache, nor page tables, nor this walk
    /// explain, at this moment.
    #[inline]
    pub(crate) fn has_unexplained_refs(&self) -> bool {
        // SAFETY: The batch holds a reference.
        unsafe { bindings::gmem_folio_excess_refs(self.as_ptr(), Self::OWN_REFS) != 0 }
    }

    /// Zeroes the folio's pages that lie in the range; sleeps if there are several. Callers know that the
    /// host may.
    #[inline]
    pub(crate) fn zero(&self) {
        self.each(|page| {
            // SAFETY: The batch holds a reference, and the page is one of the folio's.
            unsafe { bindings::gmem_folio_clear(self.as_ptr(), page) }
        });
    }

    /// Fills the folio's pages that lie in the range; sleeps if there are several. Callers know that the
    /// host may.
    #[inline]
    pub(crate) fn fill(&self, byte: u8) {
        self.each(|page| {
            // SAFETY: The batch holds a reference, and the page is one of the folio's.
            unsafe { bindings::gmem_folio_fill(self.as_ptr(), page, byte) }
        });
    }

    #[inline]
    fn each(&self, f: impl Fn(usize)) {
        let first = self.first.get();
        for at in self.pages.start().get()..self.pages.end().get() {
            f((at - first) as usize);
            if self.pages.len() > 1 {
                reschedule();
            }
        }
    }
}
