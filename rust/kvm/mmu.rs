// SPDX-License-Identifier: GPL-2.0

//! Taking pages out of guests' second-level page tables.
//!
//! KVM's MMU installs a mapping only if no invalidation of the gfn is in progress or has happened
//! since the pfn was looked up (`mmu_invalidate_seq`, `mmu_invalidate_in_progress`, under
//! `mmu_lock`). An [`InvalidateSpan`] is such an invalidation, in every VM that a file is bound to.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

use crate::{
    bindings,
    fs::{
        address_space::{
            check_killed,
            Exclusive,
            InvalidateGuard,
            Refused, //
        },
        binding::{
            Bindings,
            BindingsGuard, //
        },
        file_data::FileData,
        inode::GmemInode, //
    },
    kvm::{
        hardware::{
            Failed,
            Relocation,
            Unmoved, //
        },
        memslot::Memslot,
        platform::{
            self,
            Fatal,
            GivenUp, //
        },
        stand_in,
        vm::{
            Gfn,
            MmuGuard,
            Pfn,
            Vm, //
        }, //
    },
    mm::{
        drain::Drains,
        folio::{
            FolioRef,
            Frame, //
        }, //
    },
    trace, //
};
use core::{
    cell::Cell,
    iter,
    ptr::{
        self,
        NonNull, //
    }, //
};
use gmem_types::{
    platform::Platform,
    range::{
        PageIndex,
        PageRange, //
    },
    visibility::Visibility, //
};
use kernel::{
    prelude::*,
    sync::barrier::{
        smp_mb,
        Write, //
    },
    warn_on, //
};

/// Which kinds of mapping to remove, where the architecture distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    /// Only mappings through which the guest uses pages as private, or only as shared.
    Only(Visibility),
    /// All mappings.
    Both,
}

impl Kinds {
    /// Which kinds of guest mapping pages of a file can have.
    ///
    /// Pages of a file that does not convert keep their first attribute. A mapping of the other
    /// kind at the same gfn belongs to other memory.
    pub(crate) fn of(inode: &GmemInode) -> Self {
        if inode.converts_in_place() {
            Self::Both
        } else {
            Self::Only(inode.initial())
        }
    }

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
/// Dropping it ends it. The code above can neither keep nor forget one.
pub(crate) struct InvalidateSpan<'g> {
    stable: &'g dyn Bindings,
    only: Option<&'g FileData>,
    range: PageRange,
    /// The file and its slot, if a single slot shows pages of the range. It need not be looked up
    /// again, as the bindings are locked.
    sole: Option<(&'g FileData, &'g Memslot)>,
    /// The records of the folios were written by [`ask`](Self::ask), and are not older.
    asked: Cell<bool>,
}

/// No guest has a page of a range through mappings of some kinds, nor gets one until the
/// invalidation ends. Freeing pages consumes it.
pub struct Zapped<'s> {
    span: &'s InvalidateSpan<'s>,
    /// [`None`] if it was not all of the span's range, in all VMs.
    complete: Option<Kinds>,
    dead: bool,
}

impl<'s> Zapped<'s> {
    /// The invalidation that it happened in.
    pub(crate) fn span(&self) -> &'s InvalidateSpan<'s> {
        self.span
    }

    /// Whether one of the VMs is dead now: a zap that fails returns no error, but kills the VM.
    /// Then it is not known what the platform did with the pages.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// The pages of `inode` that no guest has any more.
    fn of(&self, inode: &GmemInode) -> Option<PageRange> {
        let of_it = ptr::eq(self.span.stable.inode(), inode);
        let all = self.complete == Some(Kinds::Both) || self.complete == Some(Kinds::of(inode));

        (of_it && all).then_some(self.span.range)
    }
}

/// An allocated folio, and where a VM has it. Exists while the VM's `mmu_lock` is held for writing.
pub struct Mapped<'a> {
    platform: Option<Platform>,
    mmu: &'a MmuGuard<'a>,
    gfn: Gfn,
    folio: &'a FolioRef<'a>,
    /// The page becomes the host's if all answers allow it.
    for_host: bool,
    kept: &'a Cell<Option<Kept>>,
}

/// The hypervisor's answer for a run of guest frames of a VM.
///
/// The answer holds until the invalidation ends, if the guest's hypercalls exit to the host: such a
/// guest cannot take pages back meanwhile. For other guests it can be stale at once.
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
        self.mmu.vm()
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

    /// Whether the guest keeps the page from the host: the page is in page tables that the host
    /// cannot access, and is not shared.
    pub fn is_kept_from_host(&self) -> bool {
        // The number of pages for which the hypervisor answers at a time.
        const AT_ONCE: u64 = 512;

        let (vm, gfn) = (NonNull::from(self.vm()).cast(), self.gfn.get());
        let known = self
            .kept
            .get()
            .filter(|run| run.vm == vm && (run.start..run.end).contains(&gfn));
        if let Some(run) = known {
            return run.kept;
        }
        let (kept, same) =
            platform::keeps_from_host(self.platform, self.mmu, self.gfn, AT_ONCE, self.for_host);
        self.kept.set(Some(Kept {
            vm,
            start: gfn,
            end: gfn.saturating_add(same),
            kept,
        }));
        kept
    }

    /// Whether the page is in the VM's S-EPT. If so, this is recorded until the page is given up.
    /// The record then decides what the removal has left in the page.
    pub fn is_in_sept(&self) -> bool {
        let is =
            platform::sept(self.platform).is_some_and(|sept| (sept.contains)(self.mmu, self.gfn));
        if is {
            self.folio.frame().mark_in_sept(true);
        }
        is
    }
}

/// How many ranges are zapped at once. This bounds how long `mmu_lock`, for which vCPUs wait, is
/// held for a map of many runs.
const AT_ONCE: usize = 32;

impl<'g> InvalidateSpan<'g> {
    /// Begins to invalidate `range` in every VM that the inode is bound to. Zaps nothing.
    pub(crate) fn begin(stable: &'g dyn Bindings, range: PageRange) -> Self {
        Self::begin_in(stable, None, range)
    }

    fn begin_in(stable: &'g dyn Bindings, only: Option<&'g FileData>, range: PageRange) -> Self {
        let span = Self {
            stable,
            only,
            range,
            sole: Self::sole(stable, only, &range),
            asked: Cell::new(false),
        };
        span.for_each_file(|file| {
            for other in stand_in::all() {
                span.for_each_gfn_range(file, &span.range, |_, start, end| {
                    other.invalidates(file.vm(), start..end);
                });
            }
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

    fn sole(
        stable: &'g dyn Bindings,
        only: Option<&FileData>,
        range: &PageRange,
    ) -> Option<(&'g FileData, &'g Memslot)> {
        let mut found = None;
        for file in stable.inode().files(stable) {
            if only.is_some_and(|only| !ptr::eq(only, file)) {
                continue;
            }
            let mut at = range.start();
            while let Some(slot) = file.next(&mut at, range) {
                if found.is_some() {
                    return None;
                }
                found = Some((file, slot));
            }
        }
        found
    }

    /// Takes all mappings that pages of the file can have out of the guests' page tables, and
    /// flushes their TLBs.
    pub(crate) fn zap(&self) -> Zapped<'_> {
        let kinds = Kinds::of(self.stable.inode());
        let zapped = self.zap_pages(kinds, iter::once(self.range));

        Zapped {
            complete: self.only.is_none().then_some(kinds),
            ..zapped
        }
    }

    /// Takes mappings like [`zap`](Self::zap), but those by which a guest has pages in its S-EPT: a page
    /// leaves that without its bytes.
    pub(crate) fn zap_to_move(&self) -> Zapped<'_> {
        if self.any_platform(|platform| platform.sept().is_some()) {
            self.zap_pages(Kinds::Only(Visibility::Shared), iter::once(self.range))
        } else {
            self.zap()
        }
    }

    /// Splits large mappings in which one of `ranges` begins or ends, so that a zap does not remove
    /// pages outside of the range. Sleeps, as it allocates page tables. If there is no memory for
    /// one, the mapping stays, and the zap removes all of it.
    ///
    /// The invalidate lock is evidence that the caller may sleep for memory. The handling of failed
    /// memory, which has only the bindings mutex, must not.
    pub(crate) fn split(
        &self,
        _guard: &InvalidateGuard<'_, Exclusive>,
        ranges: impl Iterator<Item = PageRange> + Clone,
    ) {
        self.for_each_file(|file| {
            let vm = file.vm();
            // SAFETY: The VM is valid. What is mapped from here on is small, in the span's range.
            if !unsafe { bindings::gmem_vm_has_large(vm.as_raw()) } {
                return;
            }
            for pages in ranges.clone() {
                self.for_each_gfn_range(file, &pages, |slot, start, end| {
                    let mut range = bindings::kvm_gfn_range {
                        slot,
                        start,
                        end,
                        ..Default::default()
                    };
                    // SAFETY: The VM and the slot are valid, and mmu_lock, which is taken inside,
                    // is not held. The invalidation that is in progress has the range.
                    let split = unsafe { bindings::gmem_vm_split(vm.as_raw(), &mut range) };
                    if split != 0 {
                        trace::split(|| (self.stable.inode().number(), vm.as_raw(), start, end));
                        // CAST: One or two.
                        vm.count_blocks(bindings::GMEM_BLOCK_SPLIT, split as u64);
                    }
                });
            }
        });
    }

    /// Like [`zap`](Self::zap), but only mappings of `kinds`, and of the pages of `ranges` that are
    /// in the span's range.
    pub(crate) fn zap_pages(
        &self,
        kinds: Kinds,
        ranges: impl Iterator<Item = PageRange> + Clone,
    ) -> Zapped<'_> {
        let mut dead = false;

        self.for_each_file(|file| {
            let mut ranges = ranges
                .clone()
                .filter_map(|pages| pages.intersect(&self.range))
                .fuse();
            // Collected first, as looking for them sleeps and mmu_lock is a spinlock.
            let mut next = ranges.next();
            while let Some(first) = next {
                next = ranges.next();
                match next {
                    None => self.zap_some(file, kinds, &[first]),
                    Some(second) => {
                        self.zap_many(file, kinds, first, second, &mut ranges);
                        next = ranges.next();
                    }
                }
            }
            dead |= file.vm().is_dead();
        });

        Zapped {
            span: self,
            complete: None,
            dead,
        }
    }

    /// Zaps the first two ranges, and as many of the next as can be zapped at once. It is a
    /// separate function because most requests have one range, and do not need the stack space.
    #[inline(never)]
    fn zap_many(
        &self,
        file: &FileData,
        kinds: Kinds,
        first: PageRange,
        second: PageRange,
        ranges: &mut impl Iterator<Item = PageRange>,
    ) {
        let mut some = [first; AT_ONCE];
        some[1] = second;
        let mut count = 2;
        for (place, pages) in iter::zip(some.iter_mut().skip(count), ranges) {
            *place = pages;
            count += 1;
        }
        self.zap_some(file, kinds, some.get(..count).unwrap_or(&some));
    }

    /// Zaps a few ranges. The TLBs are flushed before `mmu_lock` is released.
    fn zap_some(&self, file: &FileData, kinds: Kinds, ranges: &[PageRange]) {
        let vm = file.vm();
        let _mmu = vm.lock_mmu();
        let mut flush = false;

        stand_in::all().for_each(|other| other.set_invalidating(vm, true));
        for pages in ranges {
            self.for_each_gfn_range(file, pages, |slot, start, end| {
                let mut range = bindings::kvm_gfn_range {
                    slot,
                    start,
                    end,
                    may_block: true,
                    attr_filter: kinds.filter(),
                    ..Default::default()
                };
                trace::zap(|| {
                    let ino = self.stable.inode().number();
                    (ino, vm.as_raw(), start, end, kinds.filter())
                });
                // SAFETY: mmu_lock is held and the slot is valid.
                flush |= unsafe { bindings::gmem_vm_zap(vm.as_raw(), &mut range) };
            });
        }
        stand_in::all().for_each(|other| other.set_invalidating(vm, false));
        if flush {
            // SAFETY: The VM is valid.
            unsafe { bindings::gmem_vm_flush_remote_tlbs(vm.as_raw()) };
        }
    }

    /// Asks `question`, if there is one, about each allocated folio of the range where it shows as
    /// a guest frame, with its VM's `mmu_lock` held. Nothing new is mapped until the span ends, so
    /// a page that is not mapped now stays unmapped. `question` must not sleep.
    ///
    /// For a guest that takes pages by itself, this is always checked before a page becomes the
    /// host's: the host cannot use a page that the guest keeps, whatever the file says.
    ///
    /// # Errors
    ///
    /// The first that `question` returns; `EPERM` for a page that a guest keeps; `EINTR` if the task
    /// is being killed.
    pub(crate) fn ask(
        &self,
        guard: &InvalidateGuard<'_, Exclusive>,
        to: Visibility,
        mut question: Option<impl FnMut(&Mapped<'_>) -> Result>,
    ) -> Result<(), Refused> {
        let for_host = to == Visibility::Shared;
        if question.is_none() && !(for_host && self.any_platform(Platform::guest_decides)) {
            return Ok(());
        }
        let mut ask = |mapped: &Mapped<'_>| {
            question
                .as_mut()
                .map_or(Ok(()), |question| question(mapped))?;
            if for_host && mapped.is_kept_from_host() {
                return Err(EPERM);
            }
            Ok(())
        };
        let kept = Cell::new(None);
        let mut folios = guard.folios(&self.range);
        while let Some(batch) = folios.next_batch() {
            for folio in batch.filter(|folio| folio.is_allocated()) {
                check_killed(folio.pages().start())?;
                folio.frame().mark_in_sept(false);
                self.ask_about(&folio, for_host, &kept, &mut ask)
                    .map_err(|error| Refused {
                        error,
                        at: folio.pages().start(),
                    })?;
            }
        }
        self.asked.set(true);
        Ok(())
    }

    fn ask_about(
        &self,
        folio: &FolioRef<'_>,
        for_host: bool,
        kept: &Cell<Option<Kept>>,
        mut f: impl FnMut(&Mapped<'_>) -> Result,
    ) -> Result {
        let mut answer = Ok(());

        self.for_each_file(|file| {
            let mmu = &file.vm().lock_mmu();
            self.for_each_gfn_range(file, &folio.pages(), |_, start, end| {
                for gfn in (start..end).map(Gfn::new) {
                    if answer.is_ok() {
                        answer = f(&Mapped {
                            platform: file.platform(),
                            mmu,
                            gfn,
                            folio,
                            for_host,
                            kept,
                        });
                    }
                }
            });
        });
        answer
    }

    /// Whether the condition holds for the VM of at least one of the inode's files.
    pub(crate) fn any_vm(&self, is: impl Fn(&Vm) -> bool) -> bool {
        // Not any(): the names of functions over nested adapters are too long for kallsyms.
        for file in self.stable.inode().files(self.stable) {
            if is(file.vm()) {
                return true;
            }
        }
        false
    }

    /// Whether the condition holds for the platform of at least one of the inode's files.
    pub(crate) fn any_platform(&self, is: impl Fn(Platform) -> bool) -> bool {
        for file in self.stable.inode().files(self.stable) {
            if file.platform().is_some_and(&is) {
                return true;
            }
        }
        false
    }

    /// Checks that no platform still has the folio, after it should have given the folio up. The
    /// folio is going to be `to`.
    ///
    /// # Errors
    ///
    /// [`Fatal`] if a platform has it, or if this cannot be determined.
    pub(crate) fn given_up<'f>(
        &self,
        folio: &'f FolioRef<'f>,
        to: Visibility,
    ) -> Result<GivenUp<'f>, Fatal> {
        let frame = folio.frame();
        let was_in_sept = self.asked.get() && frame.was_in_sept();
        // Not only for VMs with an RMP: a vendor can use one for any VM.
        let mut owned = platform::is_assigned(&frame);
        let (mut zeroed, mut stays) = (was_in_sept, true);

        for file in self.stable.inode().files(self.stable) {
            let vm = file.vm();
            stays &= !file.platform().is_some_and(Platform::guest_decides);
            let Some(sept) = platform::sept(file.platform()) else {
                zeroed = false;
                continue;
            };
            zeroed &= (sept.removal_zeroes)(vm);
            let mmu = vm.lock_mmu();
            self.for_each_gfn_range(file, &folio.pages(), |_, start, end| {
                owned |= (start..end).any(|gfn| (sept.contains)(&mmu, Gfn::new(gfn)));
            });
        }
        if owned {
            return Err(Fatal);
        }
        Ok(GivenUp::new(folio, to, zeroed, stays))
    }

    /// Takes back pages of the range that guests have in page tables that the host does not see.
    /// Pages that do not come back are leaked. Sleeps.
    fn take_back(&self) {
        self.for_each_file(|file| {
            let vm = file.vm();
            if file.platform().is_some_and(Platform::guest_decides) {
                self.for_each_gfn_range(file, &self.range, |_, start, end| {
                    // SAFETY: The VM is valid, and given no page of the range as long as the span
                    // exists. mmu_lock, which is taken inside, is not held.
                    unsafe { bindings::gmem_vm_take_back(vm.as_raw(), start, end) };
                });
            }
        });
    }

    /// Has the hypervisor move the page of the range from one frame to another, if a guest has it in
    /// page tables that the host does not see. Returns whether one has. If not, the page is the
    /// host's until the span ends.
    ///
    /// # Errors
    ///
    /// What the hypervisor returns. The page is where it was then: it is at one address of one guest.
    pub(crate) fn move_page(&self, from: Pfn, to: Pfn) -> Result<bool> {
        let mut moved = Ok(false);
        self.for_each_file(|file| {
            if !file.platform().is_some_and(Platform::guest_decides) {
                return;
            }
            let mmu = file.vm().lock_mmu();
            self.for_each_gfn_range(file, &self.range, |_, start, end| {
                for gfn in (start..end).map(Gfn::new) {
                    if let Ok(false) = moved {
                        moved = platform::move_page(&mmu, gfn, from, to);
                    }
                }
            });
        });
        moved
    }

    /// Prepares for the S-EPTs of the files' VMs to have a page in `to`. Sleeps.
    ///
    /// # Errors
    ///
    /// What the platform returns.
    pub(crate) fn prepare_to_move(&self, to: &Frame<'_>) -> Result<(), Failed> {
        for file in self.files() {
            if let Some(sept) = platform::sept(file.platform()) {
                (sept.prepare_to_move)(to)?;
            }
        }
        Ok(())
    }

    /// Has the platform move the page of the range, if a guest has it in its S-EPT. Returns whether one
    /// has. If not, none gets it there until the span ends.
    ///
    /// # Errors
    ///
    /// What the platform returns: the page is in one S-EPT at most, at one address.
    pub(crate) fn relocate(&self, from: &Frame<'_>, to: &Frame<'_>) -> Result<bool, Unmoved> {
        let mut moved = Ok(false);
        self.for_each_file(|file| {
            let Some(sept) = platform::sept(file.platform()) else {
                return;
            };
            let vm = file.vm();
            let mmu = vm.lock_mmu();
            self.for_each_gfn_range(file, &self.range, |_, start, end| {
                for gfn in (start..end).map(Gfn::new) {
                    if let Ok(false) = moved {
                        moved = (sept.relocate)(&mmu, &Relocation::new(vm, gfn, from, to));
                    }
                }
            });
        });
        moved
    }

    /// The files of the inode, each of another VM or none.
    pub(crate) fn files(&self) -> impl Iterator<Item = &FileData> {
        self.stable.inode().files(self.stable)
    }

    /// Kills the VMs of the files: one of their pages is lost.
    pub(crate) fn kill(&self) {
        for file in self.files() {
            file.vm().kill();
        }
    }

    /// Takes failed memory from guests that have it in page tables that the host does not see,
    /// without touching it. Returns whether a guest had any: then it must never be freed. Sleeps.
    pub(crate) fn retire(&self) -> bool {
        let mut any = false;
        self.for_each_file(|file| {
            let vm = file.vm();
            if file.platform().is_some_and(Platform::guest_decides) {
                self.for_each_gfn_range(file, &self.range, |_, start, end| {
                    // SAFETY: As for take_back().
                    any |= unsafe { bindings::gmem_vm_retire(vm.as_raw(), start, end) };
                });
            }
        });
        any
    }

    /// Returns the first allocated folio that a platform still has, after a zap that has killed a
    /// VM.
    ///
    /// TDX's page table no longer has the folio then, but kvm-intel has taken a reference to the
    /// page that could not be removed.
    pub(crate) fn first_kept(
        &self,
        guard: &InvalidateGuard<'_, Exclusive>,
        to: Visibility,
    ) -> Option<PageIndex> {
        let has_sept = self
            .stable
            .inode()
            .files(self.stable)
            .any(|file| platform::sept(file.platform()).is_some());
        let mut drains = Drains::new();
        let mut folios = guard.folios(&self.range);
        while let Some(batch) = folios.next_batch() {
            for folio in batch.filter(|folio| folio.is_allocated()) {
                let is_held = has_sept && folio.is_held(&mut drains);
                if is_held || self.given_up(&folio, to).is_err() {
                    return Some(folio.pages().start());
                }
            }
        }
        None
    }

    /// A platform did not give up the folio: nobody gets the folio any more, and the VMs die.
    ///
    /// A folio that a guest has taken by itself is not lost: it is taken back before it is freed.
    pub(crate) fn lose(&self, folio: &FolioRef<'_>) {
        let mut taken = false;
        for file in self.stable.inode().files(self.stable) {
            taken |= file.platform().is_some_and(Platform::guest_decides);
            file.vm().kill();
        }
        if !taken {
            folio.frame().leak();
        }
    }

    fn for_each_file(&self, mut f: impl FnMut(&FileData)) {
        if let Some((file, _)) = self.sole {
            return f(file);
        }
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
        if let Some((_, slot)) = self.sole.filter(|(of, _)| ptr::eq(*of, file)) {
            // As everywhere, no page is looked for outside of the span's range.
            if let Some((start, end)) = pages
                .intersect(&self.range)
                .and_then(|pages| slot.gfns_of(&pages))
            {
                f(slot.as_raw(), start, end);
            }
            return;
        }
        file.for_each_slot(self.stable, pages, |slot| {
            if let Some((start, end)) = slot.gfns_of(pages) {
                f(slot.as_raw(), start, end);
            }
        });
    }
}

impl Drop for InvalidateSpan<'_> {
    fn drop(&mut self) {
        // A fault that has read an old attribute has to find the sequence changed. The attribute is
        // stored by a plain store, which may pass the lock below. Pairs with the smp_rmb() of guest
        // faults between the sequence and the attribute.
        smp_mb(Write);
        self.for_each_file(|file| {
            let _mmu = file.vm().lock_mmu();
            // A file that is being closed loses its pages on purpose; others may lose guest data.
            for other in stand_in::all().filter(|_| self.only.is_none()) {
                self.for_each_gfn_range(file, &self.range, |slot, start, end| {
                    // SAFETY: The slot is valid as long as the bindings are stable.
                    let slot = unsafe { Memslot::from_raw(slot) };
                    other.settles(file.vm(), self.stable.inode(), slot, start..end);
                });
            }
            // SAFETY: mmu_lock is held, and begin() has started the invalidation.
            unsafe { bindings::kvm_mmu_invalidate_end(file.vm().as_raw()) };
        });
    }
}

impl InvalidateGuard<'_, Exclusive> {
    /// Frees the folios of the part of `range` that is in the file. Guests lose them first, including
    /// pages that they keep from the host, and pages of a dead VM. The next use finds new, zeroed
    /// pages. They stay private or shared as before.
    ///
    /// # Errors
    ///
    /// Those of [`split_around`](Self::split_around), for a large folio that is partly in `range`.
    /// Nothing has been freed then.
    pub fn free(&self, range: &PageRange) -> Result<(), Refused> {
        let Some(range) = range.intersect(&self.geometry().whole()) else {
            return Ok(());
        };
        // Of a folio that it could not split, truncation would leave all pages, with their bytes.
        self.split_around(&range, true, true)?;
        // Before the first folio nothing is mapped. The entries of failed memory were removed when
        // the folio left the file.
        if let Some(range) = self.populated(&range) {
            let span = InvalidateSpan::begin(self, range);
            span.split(self, iter::once(range));
            self.truncate(span.zap());
        }
        Ok(())
    }

    /// Frees the folios that no guest has any more.
    ///
    /// Truncation unmaps mapped pages. A page that failed earlier is not mapped, but each of its
    /// former addresses has an entry that gives the host SIGBUS, also for the fresh page that comes
    /// here. No new entry is made for a folio that has left the file, so these are removed
    /// afterwards.
    fn truncate(&self, zapped: Zapped<'_>) {
        let range = zapped.of(self.inode());
        if warn_on!(range.is_none()) {
            return;
        }
        let Some(range) = range else {
            return;
        };
        zapped.span.take_back();

        let page = self.geometry().page_size();
        let start = page.offset_of(range.start()).get();
        let end = page.offset_of(range.end()).get();
        // SAFETY: The mapping is valid. The range lies inside the file, so it fits a loff_t. No
        // guest has the pages, nor gets them before the span ends.
        unsafe {
            bindings::truncate_inode_pages_range(self.inode().mapping(), start as i64, end - 1)
        }
        self.inode().unmap(&range);
    }

    /// Takes all pages of the inode out of one file's VM, as the file goes away.
    pub(crate) fn take_from_guest(&self, file: &FileData) {
        let span = InvalidateSpan::begin_in(self, Some(file), self.geometry().whole());
        // It no longer matters whether the VM has died: its memory is not touched, only unmapped.
        let _ = span.zap();
        // The memory is freed with the inode, and no guest may have it then.
        span.take_back();
    }
}

impl BindingsGuard<'_> {
    /// Takes failed memory out of the guests' page tables. The pages stay in the file.
    ///
    /// If a guest is just being given such a page, the invalidation stops the fault, and the retry
    /// finds the page poisoned.
    pub(crate) fn take_from_guests(&self, range: &PageRange) {
        // If a VM dies of this, its memory is not touched afterwards.
        let _ = InvalidateSpan::begin(self, *range).zap();
    }
}
