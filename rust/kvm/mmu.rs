// SPDX-License-Identifier: GPL-2.0

//! Taking pages out of guests' second-level page tables.
//!
//! KVM's MMU installs a mapping only if no invalidation of the gfn is going on or has been since it
//! looked the pfn up (`mmu_invalidate_seq`, `mmu_invalidate_in_progress`, under `mmu_lock`). An
//! [`InvalidateSpan`] is such an invalidation, in every VM that a file is bound to.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use crate::{
    bindings,
    fs::address_space::Bindings,
    kvm::{
        memslot::FileData,
        vm::Vm, //
    }, //
};
use core::marker::PhantomData;
use gmem_policy::{
    range::PageRange,
    request::Visibility, //
};

/// Which kinds of mapping to take away, where the architecture keeps them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// Those through which the guest uses pages as private or as shared.
    Only(Visibility),
    /// All.
    Both,
}

impl Kinds {
    fn filter(self) -> bindings::kvm_gfn_range_filter {
        match self {
            Self::Only(Visibility::Shared) => bindings::kvm_gfn_range_filter_KVM_FILTER_SHARED,
            Self::Only(Visibility::Private) => bindings::kvm_gfn_range_filter_KVM_FILTER_PRIVATE,
            Self::Both => {
                bindings::kvm_gfn_range_filter_KVM_FILTER_SHARED
                    | bindings::kvm_gfn_range_filter_KVM_FILTER_PRIVATE
            }
        }
    }
}

/// An invalidation in progress: no guest can be given a page of the range until it ends.
///
/// Dropping it ends it.
pub struct InvalidateSpan<'g> {
    stable: &'g dyn Bindings,
    only: Option<&'g FileData>,
    range: PageRange,
}

/// The guests have no mapping of the kinds that were zapped, and no VM died of it.
pub struct Zapped<'s>(PhantomData<&'s ()>);

/// A VM died: what the platform did with its pages is not known.
pub struct Dead;

impl<'g> InvalidateSpan<'g> {
    /// Begins to invalidate `range` in every VM that the inode is bound to. Zaps nothing.
    pub fn begin(stable: &'g dyn Bindings, range: PageRange) -> Self {
        Self::begin_in(stable, None, range)
    }

    /// Begins to invalidate `range` in the VM of one file.
    pub(crate) fn begin_one(
        stable: &'g dyn Bindings,
        file: &'g FileData,
        range: PageRange,
    ) -> Self {
        Self::begin_in(stable, Some(file), range)
    }

    fn begin_in(stable: &'g dyn Bindings, only: Option<&'g FileData>, range: PageRange) -> Self {
        let span = Self {
            stable,
            only,
            range,
        };
        span.for_each_file(|file| {
            let _mmu = file.vm().lock_mmu();
            // SAFETY: mmu_lock is held, and each start gets its end when the span is dropped: the
            // set of bound slots is the same then, as the bindings are locked.
            unsafe { bindings::kvm_mmu_invalidate_start(file.vm().as_raw()) };
            span.for_each_gfn_range(file, &span.range, |_, start, end| {
                // SAFETY: mmu_lock is held, inside of a start.
                unsafe { bindings::kvm_mmu_invalidate_range_add(file.vm().as_raw(), start, end) }
            });
        });
        span
    }

    /// Takes all mappings of `kinds` out of the guests' page tables and flushes their TLBs.
    ///
    /// # Errors
    ///
    /// [`Dead`] if one of the VMs is dead now: a zap that fails cannot say so, but kills the VM.
    pub fn zap(&self, kinds: Kinds) -> Result<Zapped<'_>, Dead> {
        self.zap_pages(kinds, core::iter::once(self.range))
    }

    /// Like [`zap`](Self::zap), of the pages of `ranges` only, as far as they are in the span's.
    ///
    /// # Errors
    ///
    /// As for [`zap`](Self::zap).
    pub fn zap_pages(
        &self,
        kinds: Kinds,
        ranges: impl Iterator<Item = PageRange> + Clone,
    ) -> Result<Zapped<'_>, Dead> {
        let mut dead = false;

        self.for_each_file(|file| {
            let mut ranges = ranges.clone().peekable();
            while ranges.peek().is_some() {
                self.zap_some(file, kinds, &mut ranges);
            }
            dead |= file.vm().is_dead();
        });

        if dead {
            Err(Dead)
        } else {
            Ok(Zapped(PhantomData))
        }
    }

    /// Zaps the next few of `ranges`, so that `mmu_lock`, which vCPUs wait for, is not held for as
    /// long as a map of many runs would take. The TLBs are flushed each time before it is released.
    fn zap_some(
        &self,
        file: &FileData,
        kinds: Kinds,
        ranges: &mut impl Iterator<Item = PageRange>,
    ) {
        const AT_ONCE: usize = 32;

        let vm = file.vm();
        let _mmu = vm.lock_mmu();
        let mut flush = false;

        for pages in ranges
            .take(AT_ONCE)
            .filter_map(|pages| pages.intersect(&self.range))
        {
            self.for_each_gfn_range(file, &pages, |slot, start, end| {
                let mut range = bindings::kvm_gfn_range {
                    slot,
                    start,
                    end,
                    may_block: true,
                    attr_filter: kinds.filter(),
                    ..Default::default()
                };
                // SAFETY: mmu_lock is held and the slot is valid.
                flush |= unsafe { bindings::gmem_vm_zap(vm.as_raw(), &mut range) };
            });
        }
        if flush {
            // SAFETY: The VM is valid.
            unsafe { bindings::gmem_vm_flush_remote_tlbs(vm.as_raw()) };
        }
    }

    /// Asks `f` about each bound piece of the range, with its VM's `mmu_lock` held: what it answers
    /// stays true until the span ends. `f` must not sleep.
    ///
    /// # Errors
    ///
    /// The first that `f` returns.
    pub fn ask<E>(&self, mut f: impl FnMut(&Vm, &PageRange) -> Result<(), E>) -> Result<(), E> {
        let mut answer = Ok(());

        self.for_each_file(|file| {
            let _mmu = file.vm().lock_mmu();
            file.for_each_slot(self.stable, &self.range, |slot| {
                let piece = slot
                    .file_range()
                    .and_then(|seen| seen.intersect(&self.range));
                if let (Ok(()), Some(piece)) = (&answer, piece) {
                    answer = f(file.vm(), &piece);
                }
            });
        });
        answer
    }

    fn for_each_file(&self, mut f: impl FnMut(&FileData)) {
        for file in self.stable.inode().files(self.stable) {
            let wanted = self.only.is_none_or(|only| core::ptr::eq(only, file));
            if wanted && file.has_slot(self.stable, &self.range) {
                f(file);
            }
        }
    }

    fn for_each_gfn_range(
        &self,
        file: &FileData,
        pages: &PageRange,
        mut f: impl FnMut(*mut bindings::kvm_memory_slot, u64, u64),
    ) {
        file.for_each_slot(self.stable, pages, |slot| {
            if let Some((start, end)) = slot.gfns_of(pages) {
                f(slot.as_raw(), start, end);
            }
        });
    }
}

impl Drop for InvalidateSpan<'_> {
    fn drop(&mut self) {
        self.for_each_file(|file| {
            let _mmu = file.vm().lock_mmu();
            // SAFETY: mmu_lock is held, and begin() has started the invalidation.
            unsafe { bindings::kvm_mmu_invalidate_end(file.vm().as_raw()) };
        });
    }
}
