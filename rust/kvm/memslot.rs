// SPDX-License-Identifier: GPL-2.0

//! Memslots: which pages of a file they have, and at which guest frames.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use crate::{
    bindings,
    kvm::vm::Gfn, //
};
use gmem_types::range::{
    PageIndex,
    PageRange, //
};
use kernel::types::Opaque;

/// A memslot, `struct kvm_memory_slot`.
///
/// # Invariants
///
/// A reference to it is one to a slot that is not freed meanwhile: its user is inside SRCU, holds
/// `slots_lock`, or is installing it.
#[repr(transparent)]
pub struct Memslot(Opaque<bindings::kvm_memory_slot>);

/// Pages of a file, and their guest frames.
pub struct Binding {
    /// The pages of the file.
    pub pages: PageRange,
    /// The guest frame of the first.
    pub gfn: Gfn,
}

impl Memslot {
    /// Takes a pointer from C.
    ///
    /// # Safety
    ///
    /// `slot` must be valid for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(slot: *mut bindings::kvm_memory_slot) -> &'a Self {
        // SAFETY: By the contract of this function; the type is transparent.
        unsafe { &*slot.cast() }
    }

    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::kvm_memory_slot {
        self.0.get()
    }

    #[inline]
    fn base_gfn(&self) -> u64 {
        // SAFETY: By the type's invariants; never written after the slot was made.
        unsafe { (*self.as_raw()).base_gfn }
    }

    #[inline]
    fn pgoff(&self) -> u64 {
        // SAFETY: By the type's invariants; written before anybody else sees the slot.
        // CAST: unsigned long has 64 bits here.
        unsafe { (*self.as_raw()).gmem.pgoff as u64 }
    }

    #[inline]
    fn npages(&self) -> u64 {
        // SAFETY: By the type's invariants; never written after the slot was made.
        // CAST: unsigned long has 64 bits here.
        unsafe { (*self.as_raw()).npages as u64 }
    }

    /// Where in the file `gfn` lies. [`None`] if the slot does not have it.
    #[inline]
    pub fn index_of(&self, gfn: Gfn) -> Option<PageIndex> {
        let at = gfn.get().checked_sub(self.base_gfn())?;
        if at >= self.npages() {
            return None;
        }
        Some(PageIndex::new(self.pgoff().checked_add(at)?))
    }

    /// How many pages the slot has from `gfn` on.
    #[inline]
    pub(crate) fn pages_from(&self, gfn: Gfn) -> usize {
        let before = gfn.get().saturating_sub(self.base_gfn());
        // CAST: A size_t has 64 bits here.
        self.npages().saturating_sub(before) as usize
    }

    /// Whether the slot has all of the `pages` guest frames around `gfn`. They are aligned, and their
    /// number is a power of two.
    #[inline]
    pub(crate) fn has_all_around(&self, gfn: Gfn, pages: u64) -> bool {
        let Some(before) = gfn.get().checked_sub(self.base_gfn()) else {
            return false;
        };
        let within = gfn.get() & (pages - 1);
        before >= within && before - within + pages <= self.npages()
    }

    /// The pages of the file that the slot has.
    #[inline]
    pub fn file_range(&self) -> Option<PageRange> {
        let start = self.pgoff();
        PageRange::new(
            PageIndex::new(start),
            PageIndex::new(start.checked_add(self.npages())?),
        )
    }

    /// The pages of the slot, and their guest frames.
    #[inline]
    pub(crate) fn binding(&self) -> Option<Binding> {
        Some(Binding {
            pages: self.file_range()?,
            gfn: Gfn::new(self.base_gfn()),
        })
    }

    /// The guest frames of the part of `range` that the slot has: the first, and the one after the last.
    #[inline]
    pub(crate) fn gfns_of(&self, range: &PageRange) -> Option<(u64, u64)> {
        let seen = self.file_range()?.intersect(range)?;
        let gfn = |at: PageIndex| {
            at.get()
                .checked_sub(self.pgoff())?
                .checked_add(self.base_gfn())
        };
        Some((gfn(seen.start())?, gfn(seen.end())?))
    }
}
