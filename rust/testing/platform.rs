// SPDX-License-Identifier: GPL-2.0

//! Platforms for KUnit: an RMP and an S-EPT of a few pages, which fail as a test requests.
//!
//! They allow what hardware allows: assigning a page that another guest has takes it from that
//! guest.

use super::{
    TestFile,
    TestVm, //
};
use crate::{
    fs::{
        block::{
            PrivateBlock,
            PAGES, //
        },
        page_cache::{
            LockedFolio,
            PrivatePage, //
        }, //
    },
    guest_memfd::GuestMemfd,
    kvm::{
        hardware::{
            outcome,
            sealed::Sealed,
            Entry,
            Failed,
            Relocation,
            Rmp,
            Sept,
            SeptQuestions,
            Unmoved,
            Unsplit, //
        },
        stand_in::{
            self,
            StandIn, //
        },
        vm::{
            Gfn,
            MmuGuard,
            Vm, //
        }, //
    },
    mm::folio::Frame, //
};
use core::cell::UnsafeCell;
use gmem_types::{
    platform::{
        Base,
        Platform, //
    },
    range::PageIndex, //
};
use kernel::prelude::*;

/// Operations on the RMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RmpOperation {
    /// Looking an entry up.
    Lookup,
    /// Giving a page to a guest.
    Assign,
    /// Taking a page back.
    Unassign,
    /// Splitting an entry of 2M.
    Smash,
    /// Moving a page, which gives its new memory to the guest and takes the old.
    Relocate,
}

/// The RMP's entry for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RmpEntry {
    /// The guest that it is assigned to.
    pub asid: u32,
    /// The guest frame.
    pub gfn: u64,
    /// The guest has accepted the page, and gets a fault if that changes.
    pub validated: bool,
}

const ENTRIES: usize = 64;

/// Entries of 2M, or the 512 that one was split into.
#[derive(Clone, Copy)]
struct Block {
    /// The first frame.
    pfn: u64,
    /// The entry of the first page.
    entry: RmpEntry,
    /// It was split.
    split: bool,
    /// A bit for each page that has left it since.
    gone: [u64; (PAGES / 64) as usize],
}

impl Block {
    fn bit(&self, pfn: u64) -> Option<(usize, u64)> {
        let at = pfn.checked_sub(self.pfn).filter(|at| *at < PAGES)?;
        Some((at as usize / 64, 1 << (at % 64)))
    }

    fn get(&self, pfn: u64) -> Option<RmpEntry> {
        let (word, bit) = self.bit(pfn)?;
        (self.gone[word] & bit == 0).then_some(RmpEntry {
            gfn: self.entry.gfn + (pfn - self.pfn),
            ..self.entry
        })
    }

    fn pages(&self) -> usize {
        let gone: u32 = self.gone.iter().map(|word| word.count_ones()).sum();
        PAGES as usize - gone as usize
    }
}

struct State {
    /// Assigned pages, by frame.
    rmp: [Option<(u64, RmpEntry)>; ENTRIES],
    /// The operation that fails, and how often it succeeds first.
    fails: Option<(RmpOperation, u32)>,
    /// How often it fails then.
    times: u32,
    /// The code that it fails with, as of a C function.
    code: c_int,
    /// Entries of 2M.
    blocks: [Option<Block>; 2],
    /// Pages in entries of 2M of which the test has no more pages, by frame.
    large: [Option<u64>; 4],
    /// An entry that could not be split is split by another CPU.
    others_split: bool,
    /// How often an update overlapped with an entry of another size, which the kernel retries for ever.
    overlaps: usize,
    /// Pages in the S-EPT, by gfn: when asked first, and when asked again.
    sept: [Option<(u64, bool, bool)>; ENTRIES],
    removal_zeroes: bool,
    /// Why pages in the S-EPT are not moved.
    sept_fails: Unmoved,
    /// The gfn of the page in the S-EPT that was to be moved last.
    sept_asked: Option<u64>,
    /// VMs that are on such a platform, by address.
    vms: [Option<(usize, Platform, u32)>; 4],
}

impl State {
    const NEW: Self = Self {
        rmp: [None; ENTRIES],
        fails: None,
        times: 0,
        code: 0,
        blocks: [None; 2],
        large: [None; 4],
        others_split: false,
        overlaps: 0,
        sept: [None; ENTRIES],
        removal_zeroes: false,
        sept_fails: Unmoved::Stays,
        sept_asked: None,
        vms: [None; 4],
    };

    /// The platform and the ASID of a VM that is on one of these.
    fn of(&self, vm: &Vm) -> Option<(Platform, u32)> {
        let at = vm.as_raw().addr();
        self.vms
            .iter()
            .flatten()
            .find_map(|&(of, platform, asid)| (of == at).then_some((platform, asid)))
    }

    fn rmp(&self, pfn: u64) -> Option<RmpEntry> {
        let small = |&(of, entry): &(u64, RmpEntry)| (of == pfn).then_some(entry);
        let large = |block: &Block| block.get(pfn);
        let found = self.rmp.iter().flatten().find_map(small);
        found.or_else(|| self.blocks.iter().flatten().find_map(large))
    }

    fn set_rmp(&mut self, pfn: u64, entry: Option<RmpEntry>) -> Result<(), Failed> {
        for slot in &mut self.rmp {
            if slot.is_some_and(|(of, _)| of == pfn) {
                *slot = None;
            }
        }
        for block in self.blocks.iter_mut().flatten() {
            if let Some((word, bit)) = block.bit(pfn) {
                block.gone[word] |= bit;
            }
        }
        if let Some(entry) = entry {
            let slot = self.rmp.iter_mut().find(|slot| slot.is_none());
            *slot.ok_or(Failed::Memory)? = Some((pfn, entry));
        }
        Ok(())
    }

    fn is_large(&self, pfn: u64) -> bool {
        let has = |block: &Block| !block.split && block.bit(pfn).is_some();
        self.large.contains(&Some(pfn)) || self.blocks.iter().flatten().any(has)
    }

    fn split(&mut self, pfn: u64) {
        for block in self.blocks.iter_mut().flatten() {
            block.split |= block.bit(pfn).is_some();
        }
        for slot in &mut self.large {
            if *slot == Some(pfn) {
                *slot = None;
            }
        }
    }

    /// Fails if a test has requested it.
    fn strike(&mut self, operation: RmpOperation) -> Result<(), Failed> {
        match &mut self.fails {
            Some((what, before)) if *what == operation => {
                if *before > 0 {
                    *before -= 1;
                    return Ok(());
                }
                self.times = self.times.saturating_sub(1);
                if self.times == 0 {
                    self.fails = None;
                }
                outcome(self.code)
            }
            _ => Ok(()),
        }
    }
}

struct Global(UnsafeCell<State>);

// SAFETY: KUnit runs one test after the other, and none of them starts threads.
unsafe impl Sync for Global {}

static STATE: Global = Global(UnsafeCell::new(State::NEW));

/// `f` must not call this again.
fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    // SAFETY: One test runs at a time, in one thread, and the calls are not nested.
    f(unsafe { &mut *STATE.0.get() })
}

/// The platforms of this file, for the code below.
pub(crate) struct Tests;

impl StandIn for Tests {
    fn base(&self) -> Base {
        Base::Test
    }

    fn platform(&self, vm: &Vm) -> Option<Platform> {
        with(|state| state.of(vm)).map(|(platform, _)| platform)
    }

    fn has_rmp(&self) -> bool {
        TestRmp::is_on()
    }

    fn rmp_entry(&self, frame: &Frame<'_>) -> Option<Result<Entry, Failed>> {
        TestRmp::is_on().then(|| TestRmp::lookup(frame))
    }

    fn sept(&self) -> SeptQuestions {
        SeptQuestions::of::<TestSept>()
    }
}

/// The VM is gone. With the last VM all data is dropped, as real pages and VMs may reuse the
/// addresses of those of the tests.
pub(super) fn forget(vm: &Vm) {
    let at = vm.as_raw().addr();
    with(|state| {
        for slot in &mut state.vms {
            if slot.is_some_and(|(of, _, _)| of == at) {
                *slot = None;
            }
        }
        if state.vms.iter().all(Option::is_none) {
            *state = State::NEW;
            stand_in::set_unused(Base::Test);
        }
    });
}

impl TestVm {
    /// Puts the VM on a platform, which is one of this file's if it has a part in pages. To be called
    /// before the VM has a file.
    ///
    /// # Errors
    ///
    /// `ENOSPC`.
    pub fn put_on(&self, platform: Platform, asid: u32) -> Result {
        let at = self.vm().as_raw().addr();
        with(|state| {
            // Tests of a module run before it is used, and initialised.
            stand_in::register(&Tests);
            let slot = state.vms.iter_mut().find(|slot| slot.is_none());
            *slot.ok_or(ENOSPC)? = Some((at, platform, asid));
            Ok(())
        })
    }
}

/// The frame of the page `at` of a file, which is allocated if need be.
///
/// # Errors
///
/// `ENOMEM`.
fn pfn_of<T: GuestMemfd>(file: &TestFile<'_, T>, at: u64) -> Result<u64> {
    let folio = LockedFolio::get(file.file().inode(), PageIndex::new(at))?;
    Ok(folio.pfn().get())
}

/// The RMP, see the module's documentation.
pub struct TestRmp;

impl TestRmp {
    /// The code of PSMASH for an entry that another CPU is changing.
    pub const IN_USE: c_int = 3;

    /// The code of a move by which the guest loses its page.
    pub const LOST: c_int = 5;

    /// Puts the page `at` of a file into an entry of 2M. If that cannot be split, another CPU
    /// splits it if `others_split`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENOSPC`.
    pub fn set_large<T: GuestMemfd>(file: &TestFile<'_, T>, at: u64, others_split: bool) -> Result {
        let pfn = pfn_of(file, at)?;
        with(|state| {
            let slot = state.large.iter_mut().find(|slot| slot.is_none());
            *slot.ok_or(ENOSPC)? = Some(pfn);
            state.others_split = others_split;
            Ok(())
        })
    }

    /// How often an update overlapped with an entry of another size.
    pub fn overlaps() -> usize {
        with(|state| state.overlaps)
    }

    /// Clears everything; for the beginning of a test.
    pub fn reset() {
        with(|state| *state = State::NEW);
    }

    /// Makes an operation fail `times` times, after it has succeeded `before` times.
    pub fn fail(operation: RmpOperation, before: u32, times: u32) {
        Self::fail_with(EFAULT.to_errno(), operation, before, times);
    }

    /// Makes an operation fail with the `code` that a C function would return.
    pub fn fail_with(code: c_int, operation: RmpOperation, before: u32, times: u32) {
        with(|state| {
            state.fails = Some((operation, before));
            state.times = times;
            state.code = code;
        });
    }

    /// Lets all operations succeed from now on.
    pub fn succeed() {
        with(|state| state.fails = None);
    }

    /// Returns the entry for the page `at` of a file.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn entry<T: GuestMemfd>(file: &TestFile<'_, T>, at: u64) -> Result<Option<RmpEntry>> {
        let pfn = pfn_of(file, at)?;
        Ok(with(|state| state.rmp(pfn)))
    }

    /// Whether the page `at` of a file is in an entry of 2M.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn is_large<T: GuestMemfd>(file: &TestFile<'_, T>, at: u64) -> Result<bool> {
        let pfn = pfn_of(file, at)?;
        Ok(with(|state| state.is_large(pfn)))
    }

    /// Sets the entry for the page `at` of a file.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn set<T: GuestMemfd>(file: &TestFile<'_, T>, at: u64, entry: Option<RmpEntry>) -> Result {
        let pfn = pfn_of(file, at)?;
        Ok(with(|state| state.set_rmp(pfn, entry))?)
    }
}

impl TestRmp {
    /// Whether a test uses it.
    pub(crate) fn is_on() -> bool {
        with(|state| state.vms.iter().any(Option::is_some))
    }

    /// Whether it has an entry for a page.
    pub fn has(frame: &Frame<'_>) -> bool {
        with(|state| state.rmp(frame.pfn().get()).is_some())
    }

    /// Assigns a page in any state: hardware lets a host do this, but a vendor cannot.
    ///
    /// # Errors
    ///
    /// [`Failed`], where a test wants it.
    pub fn give(frame: &Frame<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed> {
        Self::give_pfn(frame.pfn().get(), gfn, asid)
    }

    /// The same by number.
    pub(crate) fn give_pfn(pfn: u64, gfn: Gfn, asid: u32) -> Result<(), Failed> {
        with(|state| {
            state.strike(RmpOperation::Assign)?;
            if state.is_large(pfn) {
                state.overlaps += 1;
                return Err(Failed::Platform);
            }
            let entry = RmpEntry {
                asid,
                gfn: gfn.get(),
                validated: false,
            };
            state.set_rmp(pfn, Some(entry))
        })
    }

    /// How many pages are assigned.
    pub fn assigned() -> usize {
        with(|state| {
            let large: usize = state.blocks.iter().flatten().map(Block::pages).sum();
            state.rmp.iter().flatten().count() + large
        })
    }
}

impl Sealed for TestRmp {}

impl Rmp for TestRmp {
    const BASE: Base = Base::Test;

    fn asid(vm: &Vm) -> Result<u32, Failed> {
        with(|state| state.of(vm))
            .map(|(_, asid)| asid)
            .ok_or(Failed::Platform)
    }

    fn lookup(frame: &Frame<'_>) -> Result<Entry, Failed> {
        with(|state| {
            state.strike(RmpOperation::Lookup)?;
            Ok(Entry {
                assigned: state.rmp(frame.pfn().get()).is_some(),
                large: state.is_large(frame.pfn().get()),
            })
        })
    }

    fn assign(page: &PrivatePage<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed> {
        Self::give(&page.frame(), gfn, asid)
    }

    fn unassign(frame: &Frame<'_>) -> Result<(), Failed> {
        with(|state| {
            state.strike(RmpOperation::Unassign)?;
            if state.is_large(frame.pfn().get()) {
                state.overlaps += 1;
                return Err(Failed::Platform);
            }
            state.set_rmp(frame.pfn().get(), None)
        })
    }

    fn assign_block(block: &PrivateBlock<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed> {
        let pfn = block.first().get();
        with(|state| {
            state.strike(RmpOperation::Assign)?;
            if (pfn..pfn + PAGES).any(|pfn| state.rmp(pfn).is_some()) {
                state.overlaps += 1;
                return Err(Failed::Platform);
            }
            for slot in &mut state.blocks {
                if slot.is_none_or(|old| old.pfn == pfn || old.pages() == 0) {
                    *slot = Some(Block {
                        pfn,
                        entry: RmpEntry {
                            asid,
                            gfn: gfn.get(),
                            validated: false,
                        },
                        split: false,
                        gone: Default::default(),
                    });
                    return Ok(());
                }
            }
            Err(Failed::Memory)
        })
    }

    fn unassign_block(block: &PrivateBlock<'_>) -> Result<(), Failed> {
        let pfn = block.first().get();
        with(|state| {
            state.strike(RmpOperation::Unassign)?;
            for slot in &mut state.blocks {
                if slot.is_some_and(|block| block.pfn == pfn && !block.split) {
                    *slot = None;
                    return Ok(());
                }
            }
            state.overlaps += 1;
            Err(Failed::Platform)
        })
    }

    fn smash(frame: &Frame<'_>) -> Result<(), Unsplit> {
        with(|state| {
            let done = state.strike(RmpOperation::Smash);
            if done.is_ok() || state.others_split {
                state.split(frame.pfn().get());
            }
            done.map_err(|_| match state.code {
                TestRmp::IN_USE => Unsplit::InUse,
                _ => Unsplit::Failed,
            })
        })
    }

    fn relocate(page: &Relocation<'_>) -> Result<(), Unmoved> {
        let (from, to) = page.frames();
        let (from, to) = (from.pfn().get(), to.pfn().get());

        with(|state| {
            if state.strike(RmpOperation::Relocate).is_err() {
                return Err(match state.code {
                    TestRmp::LOST => Unmoved::Lost,
                    _ => Unmoved::Stays,
                });
            }
            let entry = state.rmp(from).ok_or(Unmoved::Stays)?;
            if state.is_large(from) {
                return Err(Unmoved::Stays);
            }
            // What fails here the platform does not tell.
            if state.strike(RmpOperation::Assign).is_ok() {
                state.set_rmp(to, Some(entry)).map_err(|_| Unmoved::Lost)?;
            }
            if state.strike(RmpOperation::Unassign).is_ok() {
                state.set_rmp(from, None).map_err(|_| Unmoved::Lost)?;
            }
            Ok(())
        })
    }
}

/// The S-EPT, see the module's documentation.
pub struct TestSept;

impl TestSept {
    /// Sets whether `gfn` has a page at the first lookup, and at later lookups.
    ///
    /// # Errors
    ///
    /// `ENOSPC`.
    pub fn set(gfn: u64, first: bool, later: bool) -> Result {
        with(|state| {
            let slot = state.sept.iter_mut().find(|slot| slot.is_none());
            *slot.ok_or(ENOSPC)? = Some((gfn, first, later));
            Ok(())
        })
    }

    /// Whether there is a page at `gfn`, for the test itself: does not count as a lookup.
    pub fn has(gfn: u64) -> bool {
        with(|state| {
            state
                .sept
                .iter()
                .flatten()
                .any(|&(of, is, _)| of == gfn && is)
        })
    }

    /// Sets why pages are not moved.
    pub fn fail_to_move(why: Unmoved) {
        with(|state| state.sept_fails = why);
    }

    /// The gfn of the page that was to be moved last.
    pub fn asked_to_move() -> Option<u64> {
        with(|state| state.sept_asked)
    }

    /// Sets whether taking a page out leaves zeroes.
    pub fn set_removal_zeroes(zeroes: bool) {
        with(|state| state.removal_zeroes = zeroes);
    }
}

impl Sealed for TestSept {}

impl Sept for TestSept {
    const BASE: Base = Base::Test;

    fn prepare(_vm: &Vm, _gfn: Gfn, _frame: &Frame<'_>) -> Result<(), Failed> {
        Ok(())
    }

    fn contains(_mmu: &MmuGuard<'_>, gfn: Gfn) -> bool {
        with(|state| {
            state
                .sept
                .iter_mut()
                .flatten()
                .find(|(of, _, _)| *of == gfn.get())
                .is_some_and(|(_, first, later)| core::mem::replace(first, *later))
        })
    }

    fn removal_zeroes(_vm: &Vm) -> bool {
        with(|state| state.removal_zeroes)
    }

    /// No file of a test is asked for, see [`TestFile::migratable`].
    fn moves(_vm: &Vm) -> bool {
        false
    }

    fn prepare_to_move(_to: &Frame<'_>) -> Result<(), Failed> {
        Ok(())
    }

    /// No page of a test moves: it would have to be off the LRU lists.
    fn relocate(mmu: &MmuGuard<'_>, page: &Relocation<'_>) -> Result<bool, Unmoved> {
        if !Self::contains(mmu, page.gfn()) {
            return Ok(false);
        }
        with(|state| {
            state.sept_asked = Some(page.gfn().get());
            Err(state.sept_fails)
        })
    }
}
