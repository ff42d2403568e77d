// SPDX-License-Identifier: GPL-2.0

//! The S-EPT of one VM, as the model has it.
//!
//! Everything here runs with the model's lock held. If two vCPUs fault on a page at once, the
//! second finds it in place. Most of it is called under `mmu_lock`.

use super::page::Page;
use crate::{
    bindings,
    fs::inode::GmemInode,
    kvm::{
        hardware::{
            self,
            relocate_in_mirror,
            Failed,
            Relocation,
            Unmoved, //
        },
        memslot::Memslot,
        vm::{
            Gfn,
            MmuGuard,
            Pfn,
            Vm, //
        }, //
    },
    mm::folio::Frame, //
};
use gmem_policy::emulation::{
    sept::{
        Entry,
        Failure,
        Operation,
        Table,
        Td, //
    },
    Fault, //
};
use gmem_types::{
    platform::Base,
    visibility::Visibility, //
};
use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::SpinLock,
    task::Task, //
};

/// The model's data of a guest frame.
#[derive(Default)]
struct Row {
    entry: Entry,
    fault: Option<Fault<Operation, Failure>>,
    /// KVM's page tables have the page, too. They lose it even if it cannot be removed.
    mirrored: bool,
    /// The page that was removed last, until it is known why.
    lost: Option<u64>,
}

/// The rows of all frames that were ever prepared for a page.
struct Rows(RBTree<u64, Row>);

impl Rows {
    /// Whether a test wants `operation` to fail.
    fn strike(&mut self, gfn: u64, operation: Operation) -> Result<(), Failure> {
        match self.0.get_mut(&gfn).and_then(|row| row.fault.as_mut()) {
            Some(fault) => fault.strike(operation),
            None => Ok(()),
        }
    }

    /// Whether a test wants the next `operation` to fail.
    fn is_due(&self, gfn: u64, operation: Operation) -> bool {
        let fault = self.0.get(&gfn).and_then(|row| row.fault.as_ref());
        fault.is_some_and(|fault| fault.is_due(operation))
    }

    /// Tries again once after a failure, as KVM does after it has kicked the vCPUs.
    fn strike_twice(&mut self, gfn: u64, operation: Operation) -> Result<(), Failure> {
        match self.strike(gfn, operation) {
            Err(Failure::Busy) => self.strike(gfn, operation),
            other => other,
        }
    }

    fn mirror(&mut self, gfn: u64, has: bool) {
        if let Some(row) = self.0.get_mut(&gfn) {
            row.mirrored = has;
        }
    }

    /// The first frame from `from` on.
    fn next(&self, from: u64) -> Option<u64> {
        Some(*self.0.cursor_lower_bound(&from)?.current().0)
    }
}

impl Table for Rows {
    fn get(&self, gfn: u64) -> Entry {
        self.0.get(&gfn).map_or(Entry::Absent, |row| row.entry)
    }

    fn set(&mut self, gfn: u64, entry: Entry) {
        // Written rows were reserved.
        if let Some(row) = self.0.get_mut(&gfn) {
            row.entry = entry;
        }
    }
}

/// The rows of a VM whose page table is mirrored. vCPUs translate by them.
struct Mirror<'a> {
    vm: &'a Vm,
    rows: &'a mut Rows,
}

impl Table for Mirror<'_> {
    fn get(&self, gfn: u64) -> Entry {
        self.rows.get(gfn)
    }

    fn set(&mut self, gfn: u64, entry: Entry) {
        self.rows.set(gfn, entry);
        match entry {
            // SAFETY: The VM is valid, and has an S-EPT. If that has no table for the frame, the
            // function does nothing.
            Entry::Present { pfn } => unsafe {
                bindings::gmem_sept_set(self.vm.as_raw(), gfn, pfn)
            },
            // SAFETY: As above.
            _ => unsafe { bindings::gmem_sept_clear(self.vm.as_raw(), gfn) },
        }
    }
}

/// The answer to a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The page is in place.
    Go,
    /// Let the guest fault again.
    Retry,
}

/// The table, and what the TD is in.
pub(super) struct Sept {
    td: Td,
    rows: Rows,
    /// The task that takes pages away for an invalidation; those that another takes away leave
    /// with their slot. `mmu_lock` is released in between if somebody waits for it.
    invalidating: Option<usize>,
    /// The frame that was blocked last, in a VM whose page table is mirrored.
    leaving: u64,
}

impl Sept {
    pub(super) fn new() -> Self {
        Self {
            td: Td::new(),
            rows: Rows(RBTree::new()),
            invalidating: None,
            leaving: 0,
        }
    }

    /// Makes room for a frame.
    fn reserve(this: &SpinLock<Self>, gfn: Gfn) -> Result<(), Failed> {
        let gfn = gfn.get();

        if this.lock().rows.0.get(&gfn).is_some() {
            return Ok(());
        }
        let node = RBTreeNode::new(gfn, Row::default(), GFP_KERNEL).map_err(|_| Failed::Memory)?;
        let mut sept = this.lock();
        if sept.rows.0.get(&gfn).is_none() {
            sept.rows.0.insert(node);
        }
        Ok(())
    }

    /// Does beforehand what cannot be done under `mmu_lock`.
    pub(super) fn prepare(
        this: &SpinLock<Self>,
        gfn: Gfn,
        frame: &Frame<'_>,
    ) -> Result<(), Failed> {
        Self::reserve(this, gfn)?;
        frame.set_model();
        Page::new(frame).prepare()
    }

    pub(super) fn finalize(&mut self) -> Result {
        self.td.finalize().map_err(|_| EINVAL)
    }

    /// The entry of a frame, and whether it can be removed next.
    pub(super) fn look(&self, gfn: Gfn) -> (Entry, bool) {
        let entry = self.rows.get(gfn.get());
        (entry, self.td.is_tracked(entry))
    }

    /// Whether KVM's page tables have a page there; the S-EPT itself cannot be looked at.
    fn is_mirrored(&self, gfn: Gfn) -> bool {
        self.rows.0.get(&gfn.get()).is_some_and(|row| row.mirrored)
    }

    /// Injects failures.
    pub(super) fn inject(
        this: &SpinLock<Self>,
        gfn: Gfn,
        fault: Fault<Operation, Failure>,
    ) -> Result {
        Self::reserve(this, gfn)?;
        if let Some(row) = this.lock().rows.0.get_mut(&gfn.get()) {
            row.fault = Some(fault);
        }
        Ok(())
    }

    /// PAGE.ADD: the page's bytes become what the guest reads.
    pub(super) fn add(&mut self, gfn: Gfn, frame: &Frame<'_>) -> Result {
        let page = Page::new(frame);

        self.rows
            .strike_twice(gfn.get(), Operation::Add)
            .map_err(|_| EIO)?;
        if page.is_hidden() {
            return Err(EEXIST);
        }
        self.td
            .add(&mut self.rows, gfn.get(), page.pfn())
            .map_err(|_| EEXIST)?;
        page.hide()?;
        self.rows.mirror(gfn.get(), true);
        Ok(())
    }

    /// The MMU is about to let the guest use a page: PAGE.AUG, and the guest's ACCEPT, which
    /// zeroes.
    pub(super) fn install(&mut self, gfn: Gfn, pfn: Pfn) -> Result<Answer, Failed> {
        // SAFETY: The fault is not stale, so the page is the file's, and stays so under mmu_lock.
        let page = unsafe { Page::from_pfn(pfn) };
        let Some(row) = self.rows.0.get_mut(&gfn.get()) else {
            // The frame was not prepared.
            return Err(Failed::Platform);
        };
        match row.entry {
            Entry::Present { pfn: present } if present == pfn.get() => return Ok(Answer::Go),
            Entry::Present { .. } => return Err(Failed::Platform),
            Entry::Blocked { .. } => return Ok(Answer::Retry),
            Entry::Absent => {}
        }
        match self.rows.strike(gfn.get(), Operation::Add) {
            Ok(()) => {}
            Err(Failure::Busy) => return Ok(Answer::Retry),
            Err(_) => return Err(Failed::Platform),
        }
        if page.is_hidden() {
            // The page is in a table already.
            return Err(Failed::Platform);
        }
        if !page.is_prepared() {
            return Ok(Answer::Retry);
        }
        self.td
            .augment(&mut self.rows, gfn.get(), pfn.get())
            .map_err(|_| Failed::Platform)?;
        page.zero();
        page.hide()?;
        if let Some(row) = self.rows.0.get_mut(&gfn.get()) {
            row.lost = None;
        }
        self.rows.mirror(gfn.get(), true);
        Ok(Answer::Go)
    }

    /// An invalidation begins to remove pages, or has finished. Deleting a slot removes all of its
    /// pages on purpose, so these are not counted.
    pub(super) fn set_invalidating(&mut self, invalidating: bool) {
        self.invalidating = invalidating.then(|| Task::current_raw().addr());
    }

    /// The MMU has taken the guest's private mappings of the frames away.
    ///
    /// Pages are removed one by one, in the steps that the module requires. A page that cannot be
    /// removed stays the platform's, and the VM dies.
    pub(super) fn remove(&mut self, vm: &Vm, start: u64, end: u64, zeroes: bool) {
        let mut flushed = false;
        let mut from = start;

        while let Some(gfn) = self.rows.next(from).filter(|gfn| *gfn < end) {
            from = gfn.saturating_add(1);
            let Entry::Present { pfn } = self.rows.get(gfn) else {
                continue;
            };
            if !flushed {
                // SAFETY: The VM is valid. The mappings are gone from the page table, so once is
                // enough.
                unsafe { bindings::gmem_vm_flush_remote_tlbs(vm.as_raw()) };
                flushed = true;
            }
            // SAFETY: A page in the table was not given back, so it is the file's still.
            let page = unsafe { Page::from_pfn(Pfn::new(pfn)) };
            self.rows.mirror(gfn, false);
            match self.take(gfn) {
                Ok(()) if !page.is_hidden() => {
                    // The owner of the page is not known now.
                    pr_err!("emulation: pfn {pfn:#x} was not given back\n");
                }
                Ok(()) => {
                    page.show();
                    if zeroes {
                        page.zero();
                    } else {
                        page.combine();
                    }
                    self.note_lost(gfn, pfn);
                }
                Err(_) => {
                    page.keep();
                    vm.kill();
                }
            }
        }
    }

    /// PAGE.ADD, from `source`, which can be the page itself.
    pub(super) fn page_add(
        &mut self,
        vm: &Vm,
        gfn: u64,
        pfn: Pfn,
        source: *mut bindings::page,
    ) -> Result<(), Failure> {
        let page = self.giveable(gfn, pfn)?;
        let rows = &mut self.rows;
        self.td.add(&mut Mirror { vm, rows }, gfn, pfn.get())?;
        // SAFETY: The source is valid.
        if unsafe { bindings::gmem_page_pfn(source) } != pfn.get() {
            // SAFETY: As above.
            unsafe { page.copy_from(source) };
        }
        page.hide().map_err(|_| Failure::Input)
    }

    /// PAGE.AUG, and the guest's ACCEPT, which zeroes.
    pub(super) fn page_aug(&mut self, vm: &Vm, gfn: u64, pfn: Pfn) -> Result<(), Failure> {
        let page = self.giveable(gfn, pfn)?;
        let rows = &mut self.rows;
        self.td.augment(&mut Mirror { vm, rows }, gfn, pfn.get())?;
        page.zero();
        if let Some(row) = self.rows.0.get_mut(&gfn) {
            row.lost = None;
        }
        page.hide().map_err(|_| Failure::Input)
    }

    /// A page that the host has, and that is prepared to be the TD's.
    fn giveable(&mut self, gfn: u64, pfn: Pfn) -> Result<Page<'static>, Failure> {
        self.rows.strike(gfn, Operation::Add)?;
        // SAFETY: The fault is not stale, so the page is the file's, and stays so as long as it is
        // used here: mmu_lock is held.
        let page = unsafe { Page::from_pfn(pfn) };
        if page.is_hidden() || !page.is_prepared() || self.rows.0.get(&gfn).is_none() {
            return Err(Failure::Input);
        }
        Ok(page)
    }

    /// RANGE.BLOCK.
    pub(super) fn range_block(&mut self, vm: &Vm, gfn: u64) -> Result<(), Failure> {
        self.leaving = gfn;
        self.rows.strike(gfn, Operation::Block)?;
        let rows = &mut self.rows;
        self.td.block(&mut Mirror { vm, rows }, gfn)
    }

    /// TRACK, without the kick.
    pub(super) fn track(&mut self) -> Result<(), Failure> {
        self.rows.strike(self.leaving, Operation::Track)?;
        self.td.track();
        Ok(())
    }

    /// PAGE.REMOVE. The host gets the page only after its cache lines are flushed.
    pub(super) fn page_remove(&mut self, vm: &Vm, gfn: u64) -> Result<(), Failure> {
        self.rows.strike(gfn, Operation::Remove)?;
        let rows = &mut self.rows;
        let pfn = self.td.remove(&mut Mirror { vm, rows }, gfn)?;
        self.note_lost(gfn, pfn);
        Ok(())
    }

    /// PAGE.RELOCATE. The host gets the old page only after its cache lines are flushed.
    pub(super) fn page_relocate(&mut self, vm: &Vm, gfn: u64, to: Pfn) -> Result<(), Failure> {
        self.rows.strike(gfn, Operation::Relocate)?;
        // Only after a failure is there anything to undo.
        if self.rows.is_due(gfn, Operation::Unblock) {
            return Err(Failure::Input);
        }
        // SAFETY: Nobody has the page, which takes the place of another one in its file, and mmu_lock is
        // held.
        let page = unsafe { Page::from_pfn(to) };
        if page.is_hidden() || !page.is_prepared() {
            return Err(Failure::Input);
        }
        let from = self.td.relocate(&mut self.rows, gfn, to.get())?;
        // SAFETY: A page in the table was not given back, so it is the file's still.
        let old = unsafe { Page::from_pfn(Pfn::new(from)) };
        old.show();
        page.copy(old);
        old.hide()
            .and_then(|()| page.hide())
            .map_err(|_| Failure::Input)?;
        // vCPUs translate by it from here on.
        let rows = &mut self.rows;
        Mirror { vm, rows }.set(gfn, Entry::Present { pfn: to.get() });
        Ok(())
    }

    /// RANGE.UNBLOCK.
    pub(super) fn range_unblock(&mut self, vm: &Vm, gfn: u64) -> Result<(), Failure> {
        self.rows.strike(gfn, Operation::Unblock)?;
        let rows = &mut self.rows;
        self.td.unblock(&mut Mirror { vm, rows }, gfn)
    }

    /// PHYMEM.PAGE.WBINVD.
    pub(super) fn page_wbinvd(&mut self, pfn: Pfn) -> Result<(), Failure> {
        self.rows.strike(self.leaving, Operation::Flush)?;
        // SAFETY: A page that was removed or moved just now was not given back before, so it is the
        // file's still.
        let page = unsafe { Page::from_pfn(pfn) };
        if !page.is_hidden() {
            return Err(Failure::State);
        }
        page.show();
        page.combine();
        Ok(())
    }

    /// Zeroes a page that was given back.
    pub(super) fn page_reset(pfn: Pfn) {
        // SAFETY: As in page_wbinvd(), after which this is called.
        let page = unsafe { Page::from_pfn(pfn) };
        if !page.is_hidden() {
            page.zero();
        }
    }

    /// A page was removed. Whether this was intended is known when the invalidation ends.
    fn note_lost(&mut self, gfn: u64, pfn: u64) {
        let expected = self.invalidating != Some(Task::current_raw().addr());
        if let Some(row) = self.rows.0.get_mut(&gfn) {
            row.lost = (!expected).then_some(pfn);
        }
    }

    /// RANGE.BLOCK, TRACK, PAGE.REMOVE.
    fn take(&mut self, gfn: u64) -> Result<(), Failure> {
        self.rows.strike_twice(gfn, Operation::Block)?;
        self.td.block(&mut self.rows, gfn)?;
        self.rows.strike_twice(gfn, Operation::Track)?;
        self.td.track();
        self.rows.strike_twice(gfn, Operation::Remove)?;
        self.td.remove(&mut self.rows, gfn)?;
        Ok(())
    }

    /// An invalidation ends: counts the removed pages that are still private and in the file. The
    /// guest's data in them was destroyed.
    pub(super) fn settle(
        &mut self,
        inode: &GmemInode,
        slot: &Memslot,
        start: u64,
        end: u64,
    ) -> u64 {
        let mut destroyed = 0;
        let mut from = start;

        while let Some(gfn) = self.rows.next(from).filter(|gfn| *gfn < end) {
            from = gfn.saturating_add(1);
            let lost = self.rows.0.get_mut(&gfn).and_then(|row| row.lost.take());
            let (Some(pfn), Some(at)) = (lost, slot.index_of(Gfn::new(gfn))) else {
                continue;
            };
            // SAFETY: The mapping of a live inode is valid.
            let stays =
                unsafe { bindings::gmem_mapping_has_pfn(inode.mapping(), at.get() as usize, pfn) };
            if stays && inode.visibility(at) == Visibility::Private {
                destroyed += 1;
            }
        }
        destroyed
    }
}

/// The S-EPT of each SW_PROTECTED VM with the behaviour of TDX.
pub struct ModelSept;

impl hardware::sealed::Sealed for ModelSept {}

impl hardware::Sept for ModelSept {
    const BASE: Base = Base::Model;

    fn prepare(vm: &Vm, gfn: Gfn, frame: &Frame<'_>) -> Result<(), Failed> {
        let emulation = super::of(vm).ok_or(Failed::Platform)?;
        Sept::prepare(&emulation.sept, gfn, frame)
    }

    fn contains(mmu: &MmuGuard<'_>, gfn: Gfn) -> bool {
        let vm = mmu.vm();
        super::of(vm).is_some_and(|emulation| {
            if emulation.mirrored {
                // SAFETY: The VM is valid, and its mmu_lock is held.
                unsafe { bindings::gmem_sept_contains(vm.as_raw(), gfn.get()) }
            } else {
                emulation.sept.lock().is_mirrored(gfn)
            }
        })
    }

    fn removal_zeroes(vm: &Vm) -> bool {
        super::of(vm).is_some_and(|emulation| emulation.remove_zeroes)
    }

    /// Only KVM's own mirror can be moved.
    fn moves(vm: &Vm) -> bool {
        super::of(vm).is_some_and(|emulation| emulation.mirrored)
    }

    fn prepare_to_move(to: &Frame<'_>) -> Result<(), Failed> {
        Page::new(to).prepare()
    }

    fn relocate(mmu: &MmuGuard<'_>, page: &Relocation<'_>) -> Result<bool, Unmoved> {
        if !Self::moves(mmu.vm()) {
            return Err(Unmoved::Stays);
        }
        relocate_in_mirror(mmu, page)
    }
}
