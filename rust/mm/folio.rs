// SPDX-License-Identifier: GPL-2.0

//! Folios of a guest_memfd's page cache.
//!
//! guest_memfd allocates single pages; what is said of folios here holds for larger ones, and the
//! functions that walk a range clamp to it.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use crate::{
    bindings,
    fs::{
        address_space::reschedule,
        inode::GmemInode, //
    },
    kvm::vm::{
        Gfn,
        Pfn,
        Vm, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
    ptr::NonNull, //
};
use gmem_policy::range::{
    PageIndex,
    PageRange, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

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

/// A locked folio with a reference to it; dropping it unlocks and puts.
pub struct LockedFolio<'a> {
    folio: NonNull<bindings::folio>,
    at: PageIndex,
    inode: &'a GmemInode,
}

impl<'a> LockedFolio<'a> {
    /// Finds the folio of page `at`, or allocates one as the file's memory policy says.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EAGAIN` and what else the page cache returns.
    #[inline]
    pub(crate) fn get(inode: &'a GmemInode, at: PageIndex) -> Result<Self> {
        let mapping = inode.mapping();
        let index = at.get() as usize;

        // One look-up does for both if there is no policy. If there is one, the folio most of the
        // time exists already, and the policy need not be looked up.
        let folio = if inode.policy().is_unset() {
            // SAFETY: The mapping of a live inode is valid.
            from_err_ptr(unsafe {
                bindings::gmem_filemap_create_folio(mapping, index, core::ptr::null_mut())
            })?
        } else {
            // SAFETY: The mapping of a live inode is valid.
            let found = from_err_ptr(unsafe { bindings::gmem_filemap_lock_folio(mapping, index) });
            match found {
                Ok(folio) => folio,
                Err(_) => {
                    let policy = inode.policy().at(at);
                    // SAFETY: The mapping is valid, and `policy` holds a reference.
                    from_err_ptr(unsafe {
                        bindings::gmem_filemap_create_folio(mapping, index, policy.as_ptr())
                    })?
                }
            }
        };

        Ok(Self {
            folio: NonNull::new(folio).ok_or(EIO)?,
            at,
            inode,
        })
    }

    #[inline]
    fn as_ptr(&self) -> *mut bindings::folio {
        self.folio.as_ptr()
    }

    /// Whether it was got for this page of this inode.
    #[inline]
    pub(crate) fn is_page_of(&self, inode: &GmemInode, at: PageIndex) -> bool {
        core::ptr::eq(self.inode, inode) && self.at == at
    }

    /// Zeroes the folio if this is its first use, and marks it up to date.
    ///
    /// Until then it holds whatever its last owner left.
    #[inline]
    pub fn prepare(&self) {
        // SAFETY: The folio is valid and locked.
        unsafe { bindings::gmem_folio_prepare(self.as_ptr()) }
    }

    /// Whether the memory has failed.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        // SAFETY: The folio is valid.
        unsafe { bindings::gmem_folio_hwpoison(self.as_ptr()) }
    }

    /// The `struct page`.
    #[inline]
    fn page(&self) -> *mut bindings::page {
        // SAFETY: The folio is valid and contains the page.
        unsafe { bindings::gmem_folio_file_page(self.as_ptr(), self.at.get() as usize) }
    }

    /// The host's frame of the page.
    #[inline]
    pub fn pfn(&self) -> Pfn {
        // SAFETY: The page is valid.
        Pfn::new(unsafe { bindings::gmem_page_pfn(self.page()) })
    }

    /// Gives the page to the platform, as the private page that `vm`'s guest sees at `gfn`.
    ///
    /// # Errors
    ///
    /// What the architecture returns; without such a hook there are none.
    #[inline]
    pub fn make_private(&self, vm: &Vm, gfn: Gfn) -> Result {
        // SAFETY: The VM and the folio are valid, and the folio is up to date and locked, as the
        // hook expects.
        to_result(unsafe {
            bindings::gmem_vm_make_private(vm.as_raw(), gfn.get(), self.pfn().get(), 1)
        })
    }

    /// Unlocks, and gives the reference to the caller as one to the page.
    #[inline]
    pub fn into_page(self) -> PageRef {
        let page = PageRef(self.page());
        let this = ManuallyDrop::new(self);
        // SAFETY: The folio is locked by this task; the reference goes on living in `page`.
        unsafe { bindings::folio_unlock(this.as_ptr()) };
        page
    }

    /// Gives lock and reference to the caller.
    #[inline]
    pub(crate) fn into_locked_page(self) -> *mut bindings::page {
        let page = self.page();
        let _ = ManuallyDrop::new(self);
        page
    }
}

impl Drop for LockedFolio<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: This task holds the lock and one reference.
        unsafe { bindings::gmem_folio_unlock_put(self.as_ptr()) }
    }
}

/// A page with a reference to it, on its way to KVM.
pub struct PageRef(*mut bindings::page);

impl PageRef {
    /// The host's frame.
    #[inline]
    pub fn pfn(&self) -> Pfn {
        // SAFETY: The reference keeps the page.
        Pfn::new(unsafe { bindings::gmem_page_pfn(self.0) })
    }

    /// Marks the page's folio up to date: somebody has filled it.
    #[inline]
    pub(crate) fn mark_uptodate(&self) {
        // SAFETY: The reference keeps the page.
        unsafe { bindings::gmem_page_mark_uptodate(self.0) }
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
pub struct Batches<'g> {
    mapping: *mut bindings::address_space,
    range: PageRange,
    next: usize,
    batch: bindings::folio_batch,
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
        let mut batch = MaybeUninit::zeroed();
        // SAFETY: Valid for writes.
        unsafe { bindings::gmem_folio_batch_init(batch.as_mut_ptr()) };

        Self {
            mapping,
            range,
            next: range.start().get() as usize,
            // SAFETY: A zeroed batch is an empty one, and the helper has said so, too.
            batch: unsafe { batch.assume_init() },
            _guard: PhantomData,
        }
    }

    /// The next folios, [`None`] at the end. Reschedules between batches.
    pub fn next_batch(&mut self) -> Option<impl Iterator<Item = FolioRef<'_>> + '_> {
        if self.batch.nr != 0 {
            self.release();
            reschedule();
        }
        // SAFETY: The mapping is valid, the batch empty.
        let found = unsafe {
            bindings::filemap_get_folios(
                self.mapping,
                &mut self.next,
                self.range.last().get() as usize,
                &mut self.batch,
            )
        };
        if found == 0 {
            return None;
        }

        let range = self.range;
        let count = usize::from(self.batch.nr);
        Some(
            self.batch
                .folios
                .iter()
                .take(count)
                .filter_map(move |&folio| {
                    Some(FolioRef {
                        // SAFETY: The batch holds a reference to each of its folios, and the folio stays
                        // in the page cache.
                        pages: unsafe { pages_of(folio) }?.intersect(&range)?,
                        // SAFETY: As above.
                        first: unsafe { pages_of(folio) }?.start(),
                        folio: NonNull::new(folio)?,
                        _batch: PhantomData,
                    })
                }),
        )
    }

    fn release(&mut self) {
        // SAFETY: The batch is initialised; its references are ours.
        unsafe { bindings::gmem_folio_batch_release(&mut self.batch) }
    }
}

impl Drop for Batches<'_> {
    #[inline]
    fn drop(&mut self) {
        self.release();
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
    #[inline]
    fn as_ptr(&self) -> *mut bindings::folio {
        self.folio.as_ptr()
    }

    /// The folio's pages that lie in the walk's range.
    #[inline]
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Whether the folio was ever used: zeroed, then perhaps written. One that was not holds stale
    /// bytes which nobody may see, and is to be left alone.
    #[inline]
    pub fn is_allocated(&self) -> bool {
        // SAFETY: The batch holds a reference.
        unsafe { bindings::gmem_folio_uptodate(self.as_ptr()) }
    }

    /// Whether the memory has failed.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        // SAFETY: The batch holds a reference.
        unsafe { bindings::gmem_folio_hwpoison(self.as_ptr()) }
    }

    /// Whether nobody but the page cache (and this walk) holds the folio, after trying to make it
    /// so. `unmap` takes pages out of the host's page tables.
    pub(crate) fn settle(
        &self,
        drained: &mut bindings::lru_cache_drained,
        unmap: impl Fn(&PageRange),
    ) -> bool {
        // The walk's own.
        const OWN_REFS: u32 = 1;

        // SAFETY: The batch holds a reference; the lock is given back below.
        unsafe { bindings::gmem_folio_lock(self.as_ptr()) };
        // SAFETY: As above.
        if unsafe { bindings::gmem_folio_mapped(self.as_ptr()) } {
            unmap(&self.pages);
        }
        // SAFETY: As above; `drained` starts as the function wants it.
        unsafe { bindings::lru_cache_drain_for_folio(self.as_ptr(), OWN_REFS, drained) };
        // SAFETY: As above.
        let quiet = unsafe {
            !bindings::gmem_folio_mapped(self.as_ptr())
                && bindings::gmem_folio_excess_refs(self.as_ptr(), OWN_REFS) == 0
        };
        // SAFETY: Locked above.
        unsafe { bindings::folio_unlock(self.as_ptr()) };
        quiet
    }

    /// Zeroes the folio's pages that lie in the range.
    #[inline]
    pub fn zero(&self) {
        self.each(|page| {
            // SAFETY: The batch holds a reference, and the page is one of the folio's.
            unsafe { bindings::gmem_folio_clear(self.as_ptr(), page) }
        });
    }

    /// Fills the folio's pages that lie in the range.
    #[inline]
    pub fn fill(&self, byte: u8) {
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
        }
    }
}
