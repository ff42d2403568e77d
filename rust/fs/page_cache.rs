// SPDX-License-Identifier: GPL-2.0

//! Folios of a file that are locked: looked up or allocated, zeroed at their first use, and private
//! or not.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use crate::{
    bindings,
    fs::{
        address_space::Stable,
        inode::GmemInode, //
    },
    kvm::vm::{
        Gfn,
        Pfn,
        Vm, //
    },
    mm::{
        drain::Drains,
        folio::{
            Frame,
            PageRef, //
        },
        mempolicy::PolicyRef, //
    },
    trace, //
};
use core::{
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    }, //
};
use gmem_types::{
    range::PageIndex,
    visibility::Visibility, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

/// A locked folio with a reference to it; dropping it unlocks the folio and puts the reference.
pub(crate) struct LockedFolio<'a> {
    folio: NonNull<bindings::folio>,
    at: PageIndex,
    inode: &'a GmemInode,
}

impl<'a> LockedFolio<'a> {
    /// Finds the folio of page `at`, or allocates one as the file's memory policy says; sleeps.
    ///
    /// # Errors
    ///
    /// `EINVAL` behind the end of the file, `ENOMEM`, `EAGAIN` and what else the page cache returns.
    #[inline]
    pub(crate) fn get(inode: &'a GmemInode, at: PageIndex) -> Result<Self> {
        if at.get() >= inode.geometry().pages() {
            return Err(EINVAL);
        }
        let mapping = inode.mapping();
        let index = at.get() as usize;

        // Without a policy one lookup finds or allocates the folio. With a policy the folio usually
        // exists already, and the policy need not be looked up.
        let folio = if inode.policy().is_unset() {
            // SAFETY: The mapping of a live inode is valid.
            from_err_ptr(unsafe {
                bindings::gmem_filemap_create_folio(mapping, index, ptr::null_mut())
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

    /// As [`get`](Self::get). If `missing`, the page had no folio a moment ago, and is not looked
    /// for first.
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get).
    #[inline]
    pub(crate) fn get_if_missing(
        inode: &'a GmemInode,
        at: PageIndex,
        missing: bool,
    ) -> Result<Self> {
        if !missing || at.get() >= inode.geometry().pages() {
            return Self::get(inode, at);
        }
        let policy = (!inode.policy().is_unset()).then(|| inode.policy().at(at));
        let policy = policy.as_ref().map_or(ptr::null_mut(), PolicyRef::as_ptr);
        // SAFETY: The mapping of a live inode is valid. `policy` is NULL or holds a reference.
        let added = from_err_ptr(unsafe {
            bindings::gmem_filemap_add_folio(inode.mapping(), at.get() as usize, policy)
        });
        match added {
            Err(error) if error == EEXIST => Self::get(inode, at),
            added => Ok(Self {
                folio: NonNull::new(added?).ok_or(EIO)?,
                at,
                inode,
            }),
        }
    }

    /// Finds the folio of page `at`, if it is allocated; sleeps.
    pub(crate) fn find(inode: &'a GmemInode, at: PageIndex) -> Option<Self> {
        // SAFETY: The mapping of a live inode is valid.
        let folio = from_err_ptr(unsafe {
            bindings::gmem_filemap_lock_folio(inode.mapping(), at.get() as usize)
        });
        Some(Self {
            folio: NonNull::new(folio.ok()?)?,
            at,
            inode,
        })
    }

    #[inline]
    fn as_ptr(&self) -> *mut bindings::folio {
        self.folio.as_ptr()
    }

    /// Zeroes the folio if this is its first use, and marks it up to date.
    ///
    /// Until then it holds its last owner's bytes.
    ///
    /// # Errors
    ///
    /// `EHWPOISON` if it would have to be zeroed, but the memory has failed.
    #[inline]
    pub(crate) fn prepare(self) -> Result<PreparedFolio<'a>> {
        // SAFETY: The folio is valid and locked.
        let zeroed = unsafe { bindings::gmem_folio_prepare(self.as_ptr()) };
        to_result(zeroed.min(0))?;
        let first_use = zeroed != 0;
        // What is remembered of a folio is not of its pages, when it is split. No hypervisor is given
        // pages of a large one.
        if first_use && cfg!(CONFIG_HAVE_KVM_ARCH_GMEM_TAKE_BACK) && self.pages() == 1 {
            self.frame().mark_zero(true);
        }
        Ok(PreparedFolio {
            folio: self,
            first_use,
        })
    }

    /// Whether the memory of the page has failed.
    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        // SAFETY: The folio is valid and contains the page.
        unsafe { bindings::gmem_folio_hwpoison(self.as_ptr(), self.within(), 1) == self.within() }
    }

    /// How many pages the folio has.
    #[inline]
    pub(crate) fn pages(&self) -> u64 {
        // SAFETY: The folio is valid.
        // CAST: A long has 64 bits here.
        unsafe { bindings::gmem_folio_nr_pages(self.as_ptr()) as u64 }
    }

    /// Where in its folio the page is.
    #[inline]
    pub(crate) fn within(&self) -> usize {
        // SAFETY: The folio is valid and locked. It contains the page, so its index is no higher.
        self.at.get() as usize - unsafe { bindings::gmem_folio_index(self.as_ptr()) }
    }

    /// Whether the memory of another page of the folio has failed, and not that of the page.
    #[inline]
    fn is_beside_poison(&self) -> bool {
        // Memory failure sets the folio's flag, too, before it has the host's mappings removed.
        // SAFETY: The folio is valid.
        let some = unsafe { bindings::gmem_folio_has_hwpoisoned(self.as_ptr()) };
        some && !self.is_poisoned()
    }

    /// Splits the folio so that one begins with the page, which is not the folio's first; sleeps. The
    /// others stay as large as possible.
    ///
    /// # Errors
    ///
    /// `EINVAL` for the first page. `EAGAIN` if somebody else has a reference to the folio, `ENOMEM`.
    /// Host mappings may have been dropped then, which fault back, and the folio may be in parts
    /// already.
    ///
    /// If it is the `last` attempt, the trace says what it has seen.
    pub(crate) fn split(self, last: bool) -> Result {
        let within = self.within();
        if within == 0 {
            return Err(EINVAL);
        }
        // SAFETY: The folio is valid, locked, and has our reference. It has the page, which is not the
        // first. Lock and reference are those of the first page's folio afterwards, which has the same
        // address.
        let result = to_result(unsafe { bindings::gmem_folio_split(self.as_ptr(), within) });
        if last && result == Err(EAGAIN) {
            // No LRU batch has a large folio.
            trace::busy(|| {
                // SAFETY: The folio is valid; one of the references is ours.
                let held = unsafe { bindings::gmem_folio_excess_refs(self.as_ptr(), 1) };
                (self.as_ptr(), held, Drains::new().level())
            });
        }
        result
    }

    /// The `struct page`.
    #[inline]
    fn page(&self) -> *mut bindings::page {
        // SAFETY: The folio is valid and contains the page.
        unsafe { bindings::gmem_folio_file_page(self.as_ptr(), self.at.get() as usize) }
    }

    /// The host's frame of the page.
    #[inline]
    pub(crate) fn pfn(&self) -> Pfn {
        // SAFETY: The page is valid.
        Pfn::new(unsafe { bindings::gmem_page_pfn(self.page()) })
    }

    /// The frame of the page, with its record.
    #[inline]
    pub(crate) fn frame(&self) -> Frame<'_> {
        // SAFETY: The folio is valid and locked for as long as this exists.
        unsafe { Frame::from_raw(self.folio) }
    }

    /// Unlocks, and gives the reference to the caller as one to the page. Unless the page is
    /// prepared, its bytes are the last owner's and must not be shown.
    #[inline]
    pub(crate) fn into_page(self) -> PageRef {
        let this = ManuallyDrop::new(self);
        // SAFETY: The result takes over the reference.
        let page = unsafe { PageRef::from_raw(this.page()) };
        // SAFETY: The folio is locked by this task.
        unsafe { bindings::folio_unlock(this.as_ptr()) };
        page
    }

    /// Gives lock and reference to the caller.
    #[inline]
    fn into_locked_page(self) -> *mut bindings::page {
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

/// A locked folio without bytes of an earlier owner. Only [`LockedFolio::prepare`] makes one.
pub struct PreparedFolio<'a> {
    folio: LockedFolio<'a>,
    first_use: bool,
}

impl<'a> PreparedFolio<'a> {
    /// Whether it has just been zeroed, as nobody had used it before.
    #[inline]
    pub fn is_first_use(&self) -> bool {
        self.first_use
    }

    /// The page that it was got for, if that is private and stays so: the host has no mapping of
    /// it, and gets none.
    #[inline]
    pub fn as_private<'p>(&'p self, stable: &'p Stable<'_>) -> Option<PrivatePage<'p>> {
        let of_it = ptr::eq(stable.inode(), self.folio.inode);
        let is = of_it && stable.visibility(self.folio.at) == Visibility::Private;

        is.then_some(PrivatePage(&self.folio))
    }

    /// Unlocks, and gives the reference to the caller as one to the page.
    #[inline]
    pub(crate) fn into_page(self) -> PageRef {
        self.folio.into_page()
    }

    /// Gives lock and reference to the caller, who maps it for the host, with all of its folio if it
    /// likes.
    ///
    /// # Errors
    ///
    /// The folio itself if only the page may be mapped, as another one of it has failed.
    #[inline]
    pub(crate) fn into_locked_page(self) -> Result<*mut bindings::page, Self> {
        if self.folio.is_beside_poison() {
            return Err(self);
        }
        self.folio.frame().mark_zero(false);
        Ok(self.folio.into_locked_page())
    }

    /// The host's frame of the page.
    #[inline]
    pub(crate) fn pfn(&self) -> Pfn {
        self.folio.pfn()
    }

    /// The frame of the page, with its record.
    #[inline]
    pub(crate) fn frame(&self) -> Frame<'_> {
        self.folio.frame()
    }

    /// The `struct page`, for as long as the folio is locked.
    #[inline]
    pub(crate) fn page(&self) -> *mut bindings::page {
        self.folio.page()
    }

    /// How many pages the folio has, all of which are prepared.
    #[inline]
    pub(crate) fn pages(&self) -> u64 {
        self.folio.pages()
    }
}

/// A page that is prepared, and private for as long as this exists. Platforms get no other.
pub struct PrivatePage<'p>(&'p LockedFolio<'p>);

impl PrivatePage<'_> {
    /// The frame of the page, with its record.
    #[inline]
    pub fn frame(&self) -> Frame<'_> {
        self.0.frame()
    }

    /// Lets the architecture give the page to the platform, for `vm`'s guest at `gfn`. For files that
    /// do not convert in place.
    ///
    /// # Errors
    ///
    /// What the architecture returns; without such a hook there are none.
    #[inline]
    pub fn make_private(&self, vm: &Vm, gfn: Gfn) -> Result {
        // SAFETY: The VM and the folio are valid, and the folio is up to date and locked, as the
        // hook expects.
        match unsafe {
            bindings::gmem_vm_make_private(vm.as_raw(), gfn.get(), self.0.pfn().get(), 1)
        } {
            0 => Ok(()),
            _ => Err(EIO),
        }
    }
}

/// Accesses of KVM that emulate the guest's instructions.
#[cfg(CONFIG_X86_64)]
impl PrivatePage<'_> {
    /// Whether `len` bytes from `offset` lie in the page.
    fn has(offset: usize, len: usize) -> bool {
        offset
            .checked_add(len)
            .is_some_and(|end| end <= kernel::page::PAGE_SIZE)
    }

    /// Reads `len` bytes from `offset`. Callers know that the host may.
    ///
    /// # Errors
    ///
    /// `EINVAL` if that goes beyond the page.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `len` bytes.
    pub(crate) unsafe fn read(&self, offset: usize, to: *mut c_void, len: usize) -> Result {
        if !Self::has(offset, len) {
            return Err(EINVAL);
        }
        // SAFETY: The bytes are the page's, which is the folio's; `to` is valid.
        unsafe { bindings::gmem_page_read(self.0.page(), offset, to, len) };
        Ok(())
    }

    /// Writes `len` bytes from `offset`. Callers know that the host may.
    ///
    /// # Errors
    ///
    /// `EINVAL` if that goes beyond the page.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `len` bytes.
    pub(crate) unsafe fn write(&self, offset: usize, from: *const c_void, len: usize) -> Result {
        if !Self::has(offset, len) {
            return Err(EINVAL);
        }
        // SAFETY: As for read().
        unsafe { bindings::gmem_page_write(self.0.page(), offset, from, len) };
        Ok(())
    }

    /// Atomically compares `len` bytes with the lowest bytes of `old`, and writes those of `new` if
    /// they are equal. Returns whether they were, and the current bytes in `old`. Callers know that
    /// the host may.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `len` is not 1, 2, 4 or 8, or goes beyond the page.
    pub(crate) fn compare_exchange(
        &self,
        offset: usize,
        len: usize,
        old: &mut u64,
        new: u64,
    ) -> Result<bool> {
        if !matches!(len, 1 | 2 | 4 | 8) || !Self::has(offset, len) {
            return Err(EINVAL);
        }
        // SAFETY: The page is the folio's, and the bytes are the page's.
        Ok(unsafe { bindings::gmem_page_cmpxchg(self.0.page(), offset, len, old, new) })
    }
}
