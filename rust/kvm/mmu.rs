// SPDX-License-Identifier: GPL-2.0

//! Taking pages out of guests' second-level page tables.
//!
//! KVM's MMU installs a mapping only if no invalidation of the gfn is going on or has been since it
//! looked the pfn up (`mmu_invalidate_seq`, `mmu_invalidate_in_progress`, under `mmu_lock`). An
//! [`InvalidateSpan`] is such an invalidation, in every VM that a file is bound to.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

#[cfg(CONFIG_KVM_GMEM_EMULATION)]
use crate::kvm::memslot::Memslot;
use crate::{
    bindings,
    fs::address_space::{
        Bindings,
        Exclusive,
        InvalidateGuard, //
    },
    kvm::{
        memslot::FileData,
        platform::{
            self,
            Fatal,
            GivenUp, //
        },
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::folio::FolioRef,
    trace, //
};
use core::{
    array,
    cell::Cell,
    marker::PhantomData,
    ptr::NonNull, //
};
use gmem_policy::{
    range::{
        PageIndex,
        PageRange, //
    },
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
    /// What is remembered of the folios is what [`ask`](Self::ask) has seen, and nothing older.
    asked: Cell<bool>,
}

/// The guests have no mapping of the kinds that were zapped, and no VM died of it.
pub struct Zapped<'s>(PhantomData<&'s ()>);

/// An allocated folio, and where a VM has it. Exists while the VM's `mmu_lock` is held for writing.
pub struct Mapped<'a> {
    vm: &'a Vm,
    gfn: Gfn,
    folio: &'a FolioRef<'a>,
    kept: &'a Cell<Option<Kept>>,
}

/// The hypervisor's answer for a run of guest frames of a VM.
///
/// It is good until the invalidation ends that it was asked in, as far as it is at all: a guest
/// that tells the host what it takes back takes nothing meanwhile.
#[derive(Clone, Copy)]
struct Kept {
    vm: NonNull<bindings::kvm>,
    start: u64,
    end: u64,
    kept: bool,
}

impl Mapped<'_> {
    /// The VM.
    #[inline]
    pub fn vm(&self) -> &Vm {
        self.vm
    }

    /// Where the guest has it.
    #[inline]
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// The folio.
    #[inline]
    pub fn folio(&self) -> &FolioRef<'_> {
        self.folio
    }

    /// Whether the guest keeps the page from the host: has it in page tables that the host does not
    /// see, and does not share it.
    pub fn is_kept_from_host(&self) -> bool {
        // As many as the hypervisor answers for at a time.
        const AT_ONCE: u64 = 512;

        let (vm, gfn) = (NonNull::from(self.vm).cast(), self.gfn.get());
        let known = self
            .kept
            .get()
            .filter(|run| run.vm == vm && (run.start..run.end).contains(&gfn));
        if let Some(run) = known {
            return run.kept;
        }
        let (kept, same) = platform::keeps_from_host(self.vm, self.gfn, AT_ONCE);
        self.kept.set(Some(Kept {
            vm,
            start: gfn,
            end: gfn.saturating_add(same),
            kept,
        }));
        kept
    }

    /// Whether the page is in the VM's S-EPT. That it was is remembered until it is given up: what
    /// its removal leaves in it is known then.
    pub fn is_in_sept(&self) -> bool {
        let is = platform::is_in_sept(self.vm, self.gfn);
        if is {
            self.folio.frame().mark_in_sept(true);
        }
        is
    }
}

/// How many ranges are zapped at once, so that `mmu_lock`, which vCPUs wait for, is not held for as
/// long as a map of many runs would take.
const AT_ONCE: usize = 32;

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
            asked: Cell::new(false),
        };
        span.for_each_file(|file| {
            #[cfg(CONFIG_KVM_GMEM_EMULATION)]
            span.for_each_gfn_range(file, &span.range, |_, start, end| {
                crate::emulation::invalidates(file.vm(), start..end);
            });
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
            let mut ranges = ranges
                .clone()
                .filter_map(|pages| pages.intersect(&self.range))
                .fuse();
            loop {
                // Taken out first, as looking for them sleeps and mmu_lock is a spinlock.
                let some: [_; AT_ONCE] = array::from_fn(|_| ranges.next());
                if some[0].is_none() {
                    break;
                }
                self.zap_some(file, kinds, some.into_iter().flatten());
            }
            dead |= file.vm().is_dead();
        });

        if dead {
            Err(Dead)
        } else {
            Ok(Zapped(PhantomData))
        }
    }

    /// Zaps a few ranges. The TLBs are flushed before `mmu_lock` is released.
    fn zap_some(&self, file: &FileData, kinds: Kinds, ranges: impl Iterator<Item = PageRange>) {
        let vm = file.vm();
        let _mmu = vm.lock_mmu();
        let mut flush = false;

        #[cfg(CONFIG_KVM_GMEM_EMULATION)]
        crate::emulation::set_invalidating(vm, true);
        for pages in ranges {
            self.for_each_gfn_range(file, &pages, |slot, start, end| {
                let mut range = bindings::kvm_gfn_range {
                    slot,
                    start,
                    end,
                    may_block: true,
                    attr_filter: kinds.filter(),
                    ..Default::default()
                };
                trace::zap(|| {
                    let ino = trace::ino(self.stable.inode());
                    (ino, vm.as_raw(), start, end, kinds.filter())
                });
                // SAFETY: mmu_lock is held and the slot is valid.
                flush |= unsafe { bindings::gmem_vm_zap(vm.as_raw(), &mut range) };
            });
        }
        #[cfg(CONFIG_KVM_GMEM_EMULATION)]
        crate::emulation::set_invalidating(vm, false);
        if flush {
            // SAFETY: The VM is valid.
            unsafe { bindings::gmem_vm_flush_remote_tlbs(vm.as_raw()) };
        }
    }

    /// Asks `f` about each allocated folio of the range where it shows as a guest frame, with its
    /// VM's `mmu_lock` held: as nothing is mapped anew until the span ends, a page that is not
    /// there now stays away. `f` must not sleep.
    ///
    /// # Errors
    ///
    /// The first that `f` returns.
    pub fn ask<E>(
        &self,
        guard: &InvalidateGuard<'_, Exclusive>,
        mut f: impl FnMut(&Mapped<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let kept = Cell::new(None);
        let mut folios = guard.folios(&self.range);
        while let Some(batch) = folios.next_batch() {
            for folio in batch.filter(|folio| folio.is_allocated()) {
                folio.frame().mark_in_sept(false);
                self.ask_about(&folio, &kept, &mut f)?;
            }
        }
        self.asked.set(true);
        Ok(())
    }

    fn ask_about<E>(
        &self,
        folio: &FolioRef<'_>,
        kept: &Cell<Option<Kept>>,
        mut f: impl FnMut(&Mapped<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut answer = Ok(());

        self.for_each_file(|file| {
            let vm = file.vm();
            let _mmu = vm.lock_mmu();
            self.for_each_gfn_range(file, &folio.pages(), |_, start, end| {
                for gfn in (start..end).map(Gfn::new) {
                    if answer.is_ok() {
                        answer = f(&Mapped {
                            vm,
                            gfn,
                            folio,
                            kept,
                        });
                    }
                }
            });
        });
        answer
    }

    /// Looks whether a platform still has the folio, after it should have given it up.
    ///
    /// # Errors
    ///
    /// [`Fatal`] if it has, or if that cannot be told.
    pub fn given_up<'f, 'b>(&self, folio: &'f FolioRef<'b>) -> Result<GivenUp<'f, 'b>, Fatal> {
        let frame = folio.frame();
        let was_in_sept = self.asked.get() && frame.was_in_sept();
        let (mut owned, mut zeroed, mut stays) = (false, was_in_sept, true);

        for file in self.stable.inode().files(self.stable) {
            let vm = file.vm();
            stays &= !platform::takes_by_itself(vm);
            owned |= platform::is_in_rmp(vm, &frame);
            zeroed &= platform::removal_zeroes(vm);
            if platform::has_sept(vm) {
                let _mmu = vm.lock_mmu();
                self.for_each_gfn_range(file, &folio.pages(), |_, start, end| {
                    owned |= (start..end).any(|gfn| platform::is_in_sept(vm, Gfn::new(gfn)));
                });
            }
        }
        if owned {
            return Err(Fatal);
        }
        Ok(GivenUp::new(folio, zeroed, stays))
    }

    /// Frees the folios of the range, those that guests keep from the host included: they are taken
    /// back first, without their contents. The next use of the pages finds new, zeroed ones.
    pub fn truncate(&self, guard: &InvalidateGuard<'_, Exclusive>) {
        self.take_back();
        guard.truncate(&self.range);
    }

    /// Takes back what guests have of the range in page tables that the host does not see. What
    /// does not come back is leaked. Sleeps.
    pub(crate) fn take_back(&self) {
        self.for_each_file(|file| {
            let vm = file.vm();
            if platform::takes_back(vm) {
                self.for_each_gfn_range(file, &self.range, |_, start, end| {
                    // SAFETY: The VM is valid, and given no page of the range as long as the span
                    // exists. mmu_lock, which is taken inside, is not held.
                    unsafe { bindings::gmem_vm_take_back(vm.as_raw(), start, end) };
                });
            }
        });
    }

    /// The first allocated folio that a platform still has, after a zap that a VM has died of.
    ///
    /// TDX's page table does not have it any more then, but kvm-intel has taken a reference to the
    /// page that could not be removed.
    pub fn first_kept(&self, guard: &InvalidateGuard<'_, Exclusive>) -> Option<PageIndex> {
        let has_sept = self
            .stable
            .inode()
            .files(self.stable)
            .any(|file| platform::has_sept(file.vm()));
        let mut drained = bindings::lru_cache_drained_LRU_CACHE_NOT_DRAINED;
        let mut folios = guard.folios(&self.range);
        while let Some(batch) = folios.next_batch() {
            for folio in batch.filter(|folio| folio.is_allocated()) {
                let is_held = has_sept && folio.is_held(&mut drained);
                if is_held || self.given_up(&folio).is_err() {
                    return Some(folio.pages().start());
                }
            }
        }
        None
    }

    /// A platform has failed to give up the folio: nobody gets it any more, and the VMs die.
    ///
    /// A folio that a guest has taken by itself is not lost: it is taken back before it is freed.
    pub fn lose(&self, folio: &FolioRef<'_>) {
        let mut taken = false;
        for file in self.stable.inode().files(self.stable) {
            taken |= platform::takes_by_itself(file.vm());
            file.vm().kill();
        }
        if !taken {
            folio.frame().leak();
        }
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
            // A file that is being closed takes its pages along; of others somebody may miss some.
            #[cfg(CONFIG_KVM_GMEM_EMULATION)]
            if self.only.is_none() {
                self.for_each_gfn_range(file, &self.range, |slot, start, end| {
                    // SAFETY: The slot is valid as long as the bindings are stable.
                    let slot = unsafe { Memslot::from_raw(slot) };
                    crate::emulation::settle(file.vm(), self.stable.inode(), slot, start, end);
                });
            }
            // SAFETY: mmu_lock is held, and begin() has started the invalidation.
            unsafe { bindings::kvm_mmu_invalidate_end(file.vm().as_raw()) };
        });
    }
}
