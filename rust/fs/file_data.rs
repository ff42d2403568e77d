// SPDX-License-Identifier: GPL-2.0

//! The data of a file: one VM's view of an inode.

use crate::{
    bindings,
    fs::debugfs::DebugfsFile,
    kvm::{
        memslot::Memslot,
        vm::Vm, //
    }, //
};
use core::{
    ptr,
    sync::atomic::{
        AtomicPtr,
        Ordering, //
    }, //
};
use gmem_types::{
    platform::Platform,
    range::{
        PageIndex,
        PageRange, //
    }, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        aref::ARef,
        SetOnce, //
    },
    types::Opaque, //
};

/// The data of a guest_memfd file (one VM's view of the inode): its VM, the VM's platform, and the
/// slots bound to it.
#[pin_data(PinnedDrop)]
pub(crate) struct FileData {
    /// Is dropped before the VM, whose directory it is in.
    runs: SetOnce<DebugfsFile>,
    vm: ARef<Vm>,
    platform: Option<Platform>,
    /// `struct kvm_memory_slot` by page index, a multi-index entry for each slot.
    #[pin]
    slots: Opaque<bindings::xarray>,
    /// The slot, if exactly one is bound, as for most files. Written with the bindings.
    only: AtomicPtr<bindings::kvm_memory_slot>,
}

impl FileData {
    /// A file of `vm`, which is on `platform`, with nothing bound to it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[inline]
    pub(crate) fn new(vm: &Vm, platform: Option<Platform>) -> Result<Pin<KBox<Self>>> {
        // Without memory there is no value yet that would be dropped.
        KBox::pin_init(
            pin_init!(Self {
                runs: SetOnce::new(),
                vm: vm.into(),
                platform,
                // SAFETY: The array is at its final place and not in use.
                slots <- Opaque::ffi_init(|slots| unsafe { bindings::gmem_xa_init(slots) }),
                only: AtomicPtr::new(ptr::null_mut()),
            }),
            GFP_KERNEL,
        )
    }

    #[inline]
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The platform that the VM is on, if it is one that this crate knows.
    #[inline]
    pub(crate) fn platform(&self) -> Option<Platform> {
        self.platform
    }

    /// Keeps the debugfs file for as long as this lives.
    #[inline]
    pub(crate) fn keep(&self, runs: DebugfsFile) {
        self.runs.populate(runs);
    }

    /// Whether `slot` is what is bound at `at`. Any context.
    ///
    /// If another slot is bound there, this is a bug, and a warning is printed.
    #[inline]
    pub(crate) fn is_bound(&self, at: PageIndex, slot: &Memslot) -> bool {
        if self.only.load(Ordering::Relaxed) == slot.as_raw() {
            return slot.file_range().is_some_and(|seen| seen.contains(at));
        }
        // SAFETY: The array is initialised; the entry is compared, not followed.
        let bound = unsafe { bindings::xa_load(self.slots.get(), at.get() as usize) };
        let is = ptr::eq(bound, slot.as_raw().cast());
        if !is && !bound.is_null() {
            // SAFETY: Only warns.
            unsafe { bindings::gmem_warn_stale_slot() };
        }
        is
    }

    /// The next bound slot that shows a page of `range`, from `at` on. To be called with the bindings
    /// locked.
    #[inline]
    pub(crate) fn next(&self, at: &mut PageIndex, range: &PageRange) -> Option<&Memslot> {
        let rest = PageRange::new(*at, range.end())?;
        let only = self.only.load(Ordering::Relaxed);
        if !only.is_null() {
            // SAFETY: As below.
            let slot = unsafe { Memslot::from_raw(only) };
            let seen = slot.file_range()?.intersect(&rest)?;
            *at = seen.end();
            return Some(slot);
        }
        self.find_next(at, range)
    }

    fn find_next(&self, at: &mut PageIndex, range: &PageRange) -> Option<&Memslot> {
        if at.get() >= range.end().get() {
            return None;
        }
        let mut index = at.get() as usize;
        // SAFETY: The array is initialised.
        let slot = unsafe {
            bindings::xa_find(
                self.slots.get(),
                &mut index,
                range.last().get() as usize,
                bindings::GMEM_XA_PRESENT,
            )
        };
        if slot.is_null() {
            return None;
        }
        // SAFETY: A slot is unbound before it is freed, with the bindings locked, and callers hold
        // them.
        let slot = unsafe { Memslot::from_raw(slot.cast()) };
        // A slot's pages can be several entries of the array: continue behind all of them.
        let end = slot.file_range().map_or(range.end(), |seen| seen.end());
        *at = PageIndex::new(end.get().max((index as u64).saturating_add(1)));
        Some(slot)
    }

    /// Binds `slot`, or no slot if it is NULL, to `range`. To be called with the bindings locked.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, except if NULL is stored over existing entries.
    pub(super) fn store(&self, range: &PageRange, slot: *mut bindings::kvm_memory_slot) -> Result {
        // SAFETY: The array is initialised, and the range is not empty.
        let old = unsafe {
            bindings::xa_store_range(
                self.slots.get(),
                range.start().get() as usize,
                range.last().get() as usize,
                slot.cast(),
                bindings::GFP_KERNEL,
            )
        };
        self.remember_only();
        // SAFETY: `old` is what the call returned.
        to_result(unsafe { bindings::gmem_xa_err(old) })
    }

    /// The bindings have changed.
    fn remember_only(&self) {
        let mut only = ptr::null_mut();
        let mut at = PageIndex::new(0);
        if let Some(all) = PageRange::new(at, PageIndex::new(u64::MAX)) {
            if let Some(slot) = self.find_next(&mut at, &all) {
                if self.find_next(&mut at, &all).is_none() {
                    only = slot.as_raw();
                }
            }
        }
        self.only.store(only, Ordering::Relaxed);
    }
}

#[pinned_drop]
impl PinnedDrop for FileData {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The array is initialised, and nobody else can reach it any more.
        unsafe { bindings::xa_destroy(self.slots.get()) }
    }
}
