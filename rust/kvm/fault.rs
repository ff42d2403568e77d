// SPDX-License-Identifier: GPL-2.0

//! The file's part in guest faults: KVM asks for the page of a guest frame.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h), `kvm_gmem_get_pfn()`

use crate::{
    attribute_map::Reader,
    bindings,
    fs::{
        address_space::Stable,
        block::{
            self,
            Block,
            PrivateBlock, //
        },
        file::GmemFile,
        inode::GmemInode,
        page_cache::{
            LockedFolio,
            PreparedFolio, //
        }, //
    },
    kvm::{
        memslot::Memslot,
        platform,
        vm::{
            Gfn,
            Pfn,
            Vm, //
        }, //
    },
    mm::folio::PageRef, //
};
use core::{
    cell::Cell,
    marker::PhantomData,
    mem::MaybeUninit,
    ptr, //
};
use gmem_types::{
    platform::Platform,
    range::PageIndex,
    visibility::Visibility, //
};
use kernel::{
    prelude::*,
    sync::rcu, //
};

/// A guest fault that is being handled.
pub struct GuestFault<'a> {
    vm: &'a Vm,
    file: &'a GmemFile,
    gfn: Gfn,
    at: PageIndex,
    /// The page was looked up, and has no folio.
    missing: Cell<bool>,
    /// The slot has all guest frames that a large mapping of the page would cover, aligned like the
    /// pages of the file.
    fits: bool,
}

/// A page for a guest. Only a [`GuestFault`] makes one; it cannot be kept for another fault.
pub struct GuestPage<'a> {
    pub(crate) pfn: Pfn,
    /// [`None`] if only `mmu_invalidate_seq` ensures that the page still belongs to the file.
    pub(crate) page: Option<PageRef>,
    /// How large a mapping may be: 2 to the power of this, in pages.
    pub(crate) max_order: u8,
    _fault: PhantomData<&'a ()>,
}

impl<'a> GuestFault<'a> {
    /// A fault of `vm` at `gfn`, where it sees the page `at` of the file.
    #[inline]
    pub(crate) fn new(vm: &'a Vm, file: &'a GmemFile, gfn: Gfn, at: PageIndex) -> Self {
        Self {
            vm,
            file,
            gfn,
            at,
            missing: Cell::new(false),
            fits: false,
        }
    }

    /// The same, through `slot`: the mapping may be a large one, where the MMU has these.
    #[inline]
    pub(crate) fn through(self, slot: &Memslot) -> Self {
        let fits = cfg!(CONFIG_HAVE_KVM_ARCH_GMEM_LARGE)
            && block::within(self.gfn.get()) == block::within(self.at.get())
            && slot.has_all_around(self.gfn, block::PAGES);
        Self { fits, ..self }
    }

    /// The VM.
    #[inline]
    pub fn vm(&self) -> &'a Vm {
        self.vm
    }

    /// The platform that the VM is on, if its memory can be converted in place.
    #[inline]
    pub fn platform(&self) -> Option<Platform> {
        self.file.platform()
    }

    /// The file's inode.
    #[inline]
    pub fn inode(&self) -> &'a GmemInode {
        self.file.inode()
    }

    /// Where the guest sees the page.
    #[inline]
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// The page in the file.
    #[inline]
    pub fn at(&self) -> PageIndex {
        self.at
    }

    /// Returns the folio of the page, locked, allocated if necessary, and zeroed at its first use;
    /// sleeps.
    ///
    /// # Errors
    ///
    /// `EHWPOISON` if the memory has failed, `EINVAL` if `stable` is another file's, `ENOMEM`, and
    /// other errors of the page cache.
    #[inline]
    pub(crate) fn folio<'s>(&self, stable: &'s Stable<'_>) -> Result<PreparedFolio<'s>> {
        if !ptr::eq(stable.inode(), self.inode()) {
            return Err(EINVAL);
        }
        let folio = LockedFolio::get_if_missing(stable.inode(), self.at, self.missing.get())?;
        if folio.is_poisoned() {
            return Err(EHWPOISON);
        }
        folio.prepare()
    }

    /// Whether the guest's page need not be given to a platform.
    #[inline]
    fn is_plain(&self) -> bool {
        let inode = self.inode();
        // In other files, the architecture prepares private pages.
        let shared = !inode.converts_in_place() && inode.initial() == Visibility::Shared;
        shared || self.platform().is_some_and(|on| !on.owns_pages())
    }

    /// Whether the file tracks which of its pages are private, or has no private pages.
    #[inline]
    fn knows_kinds(&self) -> bool {
        self.inode().converts_in_place() || self.is_plain()
    }

    /// Whether pages of this kind are given to the platform: a large mapping must include none that
    /// it was not given together with the page of the fault.
    #[inline]
    fn is_given(&self, of: Visibility) -> bool {
        of == Visibility::Private && self.platform().is_some_and(Platform::owns_pages)
    }

    /// Whether pages of this kind are mapped one by one, because the platform is given private pages
    /// one by one.
    #[inline]
    fn is_one_by_one(&self, of: Visibility) -> bool {
        self.is_given(of) && !self.platform().is_some_and(Platform::takes_blocks)
    }

    /// Whether a large mapping could have `pfn` at the place of the fault, as far as their alignment
    /// tells. This is rarely so for pages that are not contiguous.
    #[inline]
    fn may_be_large(&self, pfn: Pfn) -> bool {
        self.fits && block::within(pfn.get()) == block::within(self.at.get()) && self.knows_kinds()
    }

    /// Returns the largest order of a mapping with `pfn` at the place of the fault. Any
    /// context.
    ///
    /// It is as large as a block, if there is evidence of one and `allowed` is no less, or a single
    /// page.
    #[inline]
    fn max_order(&self, pfn: Pfn, allowed: u8) -> u8 {
        // There is one size.
        if allowed < block::ORDER || !self.may_be_large(pfn) {
            return 0;
        }
        match Block::find(self.inode(), self.at, Reader::from(&rcu::read_lock())) {
            Some(block) if block.pfn(self.at) == pfn => block::ORDER,
            _ => 0,
        }
    }

    /// Calls `f` with the block of the page, and the guest frame of its first page, if a platform can
    /// be given the block as a whole; sleeps. The pages are in the file already: a fault allocates
    /// one.
    pub fn with_private_block<R>(
        &self,
        stable: &Stable<'_>,
        f: impl FnOnce(Gfn, &PrivateBlock<'_>) -> R,
    ) -> Option<R> {
        let takes = self.platform().is_some_and(Platform::takes_blocks);
        if !takes || !self.fits || !self.knows_kinds() || !ptr::eq(stable.inode(), self.inode()) {
            return None;
        }
        let block = PrivateBlock::lock(stable, self.at)?;
        // Where all of the slot's frames are that the mapping covers.
        let first = Gfn::new(self.gfn.get() - block::within(self.gfn.get()));
        Some(f(first, &block))
    }

    /// The fault is on the first of the pages of a large mapping, all of which are wanted. Allocates
    /// them as a block, if the first is missing and one mapping could cover them; sleeps. Otherwise,
    /// or if there is no memory for a block, they are allocated as they are mapped.
    ///
    /// Returns whether one mapping could cover the pages that are in use already, as far as the
    /// first page tells.
    pub fn allocate_block(&self) -> bool {
        let inode = self.inode();
        if !self.fits || !self.knows_kinds() || self.is_one_by_one(inode.visibility(self.at)) {
            return false;
        }
        let (found, pfn) = self.look_up();
        if found == bindings::GMEM_FOUND_NOTHING {
            // Without the lock the fault fails as well, and returns the reason.
            let _ = inode.locked_shared(|guard| -> Result {
                guard.allocate_block(self.vm, self.at);
                Ok(())
            });
        }
        found == bindings::GMEM_FOUND_IN_USE && self.may_be_large(pfn)
    }

    /// Whether the page is in use, and its frame if so. Any context.
    #[inline]
    fn look_up(&self) -> (u32, Pfn) {
        let mut pfn = 0;
        // SAFETY: The mapping of a live inode is valid, and `pfn` valid for writes.
        let found = unsafe {
            bindings::gmem_mapping_pfn(self.inode().mapping(), self.at.get() as usize, &mut pfn)
        };
        (found, Pfn::new(pfn))
    }

    /// Stores in `pfns` the frames of pages in use, from the page of the fault on, that are all
    /// private or all shared at this moment, and returns how many. Any context.
    ///
    /// They are valid as long as no invalidation begins.
    pub(crate) fn in_use(&self, pfns: &mut [MaybeUninit<u64>]) -> usize {
        let inode = self.inode();
        if !self.is_plain() {
            return 0;
        }
        let run = inode.run_for(self.at, Reader::from(&rcu::read_lock()));
        let Some(same) = run.range.intersect(&inode.geometry().whole()) else {
            return 0;
        };
        if !same.contains(self.at) {
            return 0;
        }
        // CAST: At most as many as there is room for, which is few.
        let nr = (same.end().get() - self.at.get()).min(pfns.len() as u64) as c_int;
        // SAFETY: The mapping of a live inode is valid, and there is room for as many frames.
        let found = unsafe {
            bindings::gmem_mapping_pfns(
                inode.mapping(),
                self.at.get() as usize,
                nr,
                pfns.as_mut_ptr().cast(),
            )
        };
        usize::try_from(found).unwrap_or(0)
    }

    /// Gives the page to KVM if it is in use, without lock and reference; [`None`] if
    /// [`serve`](Self::serve) is needed, as for a page that the VM's platform has to be given.
    ///
    /// A page leaves the file, fails, or changes between private and shared inside an invalidation.
    /// KVM has read `mmu_invalidate_seq` before, so it does not map the page if that has happened
    /// since.
    ///
    /// `allowed` says how large a mapping may be, as a power of two in pages.
    #[inline]
    pub fn serve_in_use(&self, allowed: u8) -> Option<GuestPage<'a>> {
        let inode = self.inode();
        if !self.is_plain() || self.at.get() >= inode.geometry().pages() {
            return None;
        }
        let (found, pfn) = self.look_up();
        self.missing.set(found == bindings::GMEM_FOUND_NOTHING);
        (found == bindings::GMEM_FOUND_IN_USE).then(|| GuestPage {
            pfn,
            page: None,
            max_order: self.max_order(pfn, allowed),
            _fault: PhantomData,
        })
    }

    /// Gives the page to KVM, after `f` has seen its folio; sleeps.
    ///
    /// `f` returns how large a mapping the page may be a part of, as a power of two in pages. The
    /// mapping is no larger than there is evidence for. Private pages that a platform is given get
    /// a large mapping only if the platform has all of the block by one entry, as `f` sees only one
    /// page. The first use of a page of a block that is allocated, and could be mapped at once, is the
    /// first use of the whole block.
    ///
    /// # Errors
    ///
    /// Those of [`folio`](Self::folio), and what `f` returns.
    #[inline]
    pub fn serve(
        self,
        stable: &Stable<'_>,
        f: impl FnOnce(&PreparedFolio<'_>) -> Result<u8>,
    ) -> Result<GuestPage<'a>> {
        let folio = self.folio(stable)?;
        let max_order = f(&folio)?;
        // The first use of a page is that of all of its folio, which can be the block.
        let first_use = folio.is_first_use() && folio.pages() < block::PAGES;
        let may_be_large = max_order >= block::ORDER && self.may_be_large(folio.pfn());
        let is_given = may_be_large && self.is_given(stable.visibility(self.at));
        // Asked with the folio locked. From here on only an invalidation takes the page back. If the
        // entry is split meanwhile, KVM sees that under mmu_lock.
        let allowed = if is_given && !platform::is_assigned_in_block(&folio.frame()) {
            0
        } else {
            max_order
        };
        let page = folio.into_page();
        if first_use && may_be_large && !is_given {
            block::prepare_around(stable, self.at);
        }
        Ok(GuestPage {
            max_order: self.max_order(page.pfn(), allowed),
            pfn: page.pfn(),
            page: Some(page),
            _fault: PhantomData,
        })
    }
}
