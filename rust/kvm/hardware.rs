// SPDX-License-Identifier: GPL-2.0

//! The operations of a platform's hardware, and their results.
//!
//! SNP has the RMP, a table with an entry for each page of the host; TDX has the S-EPT, a page
//! table for each guest. Both are small traits, with two implementations: the kernel's functions,
//! which are here, and a software model. Vendor code is the same over both, and cannot choose
//! between them.
//!
//! C headers: [`arch/x86/include/asm/sev.h`](srctree/arch/x86/include/asm/sev.h),
//! [`arch/x86/kvm/mmu.h`](srctree/arch/x86/kvm/mmu.h)

use crate::{
    bindings,
    fs::{
        block::PrivateBlock,
        page_cache::PrivatePage, //
    },
    kvm::vm::{
        Gfn,
        MmuGuard,
        Vm, //
    },
    mm::folio::Frame, //
};
use gmem_types::platform::Base;
use kernel::prelude::*;

/// Only the values listed here are accepted.
pub(crate) mod sealed {
    pub trait Sealed {}
}

/// The error of a platform that fails, or that gives an invalid answer.
///
/// User space gets `EIO` for it, and never `EFAULT`. With `EFAULT`, KVM_RUN asks for a conversion
/// of the page, which does not help if a platform fails, and would be repeated for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The platform failed.
    Platform,
    /// There was no memory, and the platform was not called.
    Memory,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Platform => EIO,
            Failed::Memory => ENOMEM,
        }
    }
}

/// Converts the return code of a C function. Only 0 is success: instructions fail with positive
/// codes, which [`to_result`](kernel::error::to_result) takes for success.
pub(crate) fn outcome(code: c_int) -> Result<(), Failed> {
    match code {
        0 => Ok(()),
        code if code == ENOMEM.to_errno() => Err(Failed::Memory),
        _ => Err(Failed::Platform),
    }
}

/// The state of a page in the RMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// It is a guest's, or firmware's: a write of the host would fault.
    pub assigned: bool,
    /// The entry is one for 2M.
    pub large: bool,
}

/// Why an entry was not split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsplit {
    /// Another CPU is changing it, which does not take long.
    InUse,
    /// The platform failed, or there is no such entry any more.
    Failed,
}

/// A page that is to be moved to other memory, which the host has.
///
/// No guest has the page in page tables of the host's. Only the code that moves pages makes one.
pub struct Relocation<'m> {
    vm: &'m Vm,
    gfn: Gfn,
    from: &'m Frame<'m>,
    to: &'m Frame<'m>,
}

impl<'m> Relocation<'m> {
    /// Of the page that the guest of `vm` has at `gfn`, or may have. Both folios are locked.
    pub(super) fn new(vm: &'m Vm, gfn: Gfn, from: &'m Frame<'_>, to: &'m Frame<'_>) -> Self {
        Self { vm, gfn, from, to }
    }

    /// Where the guest has it.
    #[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
    pub(crate) fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// Where it is, and where it is moved to.
    #[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
    pub(crate) fn frames(&self) -> (&Frame<'_>, &Frame<'_>) {
        (self.from, self.to)
    }
}

/// Why a page was not moved to other memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmoved {
    /// The guest has it as before.
    Stays,
    /// The guest has lost it.
    Lost,
}

/// SNP's table with the owners of all pages of the host.
///
/// Updates do not check the previous state, so callers do. Nobody else assigns or takes back the
/// pages of a file meanwhile: the folio is locked, or the invalidate lock is held.
pub trait Rmp: sealed::Sealed {
    /// The implementation.
    const BASE: Base;

    /// The number by which the table identifies a guest.
    ///
    /// # Errors
    ///
    /// [`Failed`] if there is none.
    fn asid(vm: &Vm) -> Result<u32, Failed>;

    /// Looks up the current entry of a page.
    ///
    /// # Errors
    ///
    /// [`Failed`] if there is no such table or entry, or if it cannot be read. The page then is not
    /// known to be the host's.
    fn lookup(frame: &Frame<'_>) -> Result<Entry, Failed>;

    /// Assigns one page, which the host has not mapped, to the guest with `asid` at `gfn`.
    ///
    /// # Errors
    ///
    /// [`Failed`]. The entry is unchanged.
    fn assign(page: &PrivatePage<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed>;

    /// Takes one page back, and flushes its cache lines.
    ///
    /// # Errors
    ///
    /// [`Failed`]. The entry is unchanged.
    fn unassign(frame: &Frame<'_>) -> Result<(), Failed>;

    /// Assigns a block by one entry for 2M, to the guest with `asid` from `gfn` on, which is a multiple
    /// of 2M.
    ///
    /// # Errors
    ///
    /// [`Failed`], also if a page of it is assigned by an entry of its own. No entry has changed.
    fn assign_block(block: &PrivateBlock<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed>;

    /// Takes back a block that was assigned by one entry, which was not split since, and flushes its
    /// cache lines.
    ///
    /// # Errors
    ///
    /// [`Failed`]. The entry is unchanged.
    fn unassign_block(block: &PrivateBlock<'_>) -> Result<(), Failed>;

    /// Tries once to split the entry for 2M that the page is in.
    ///
    /// # Errors
    ///
    /// [`Unsplit`]. The entry is unchanged by this.
    fn smash(frame: &Frame<'_>) -> Result<(), Unsplit>;

    /// Moves a page of a guest's to other memory, with what the table has for it. The memory that the
    /// guest does not have afterwards is the host's, unless the table says otherwise.
    ///
    /// # Errors
    ///
    /// [`Unmoved`].
    fn relocate(page: &Relocation<'_>) -> Result<(), Unmoved>;
}

/// TDX's page table of a guest's private pages.
pub trait Sept: sealed::Sealed {
    /// The implementation.
    const BASE: Base;

    /// Prepares for the page to be mapped at `gfn`; may sleep, unlike the mapping itself.
    ///
    /// # Errors
    ///
    /// [`Failed`].
    fn prepare(vm: &Vm, gfn: Gfn, frame: &Frame<'_>) -> Result<(), Failed>;

    /// Whether there is a page at `gfn` of the VM.
    fn contains(mmu: &MmuGuard<'_>, gfn: Gfn) -> bool;

    /// Whether taking a page out leaves zeroes in it.
    fn removal_zeroes(vm: &Vm) -> bool;

    /// Whether pages of the VM can be moved to other memory.
    fn moves(vm: &Vm) -> bool;

    /// Prepares for a page to be moved to `to`; may sleep, unlike the move itself.
    ///
    /// # Errors
    ///
    /// [`Failed`].
    fn prepare_to_move(to: &Frame<'_>) -> Result<(), Failed>;

    /// Moves a page to other memory, if it is in the VM's table, and returns whether it is. The memory
    /// that the guest does not have afterwards is the host's, or is never freed.
    ///
    /// # Errors
    ///
    /// [`Unmoved`]. If it is lost, it is where it was, and the VM is dead.
    fn relocate(mmu: &MmuGuard<'_>, page: &Relocation<'_>) -> Result<bool, Unmoved>;
}

/// The RMP of this machine.
pub struct HardwareRmp;

impl sealed::Sealed for HardwareRmp {}

impl Rmp for HardwareRmp {
    const BASE: Base = Base::Hardware;

    fn asid(vm: &Vm) -> Result<u32, Failed> {
        // SAFETY: The VM is valid, and holds a reference to the vendor's module.
        match unsafe { bindings::gmem_rmp_asid(vm.as_raw()) } {
            0 => Err(Failed::Platform),
            asid => Ok(asid),
        }
    }

    fn lookup(frame: &Frame<'_>) -> Result<Entry, Failed> {
        let (mut assigned, mut large) = (false, false);
        // SAFETY: Both have room.
        outcome(unsafe {
            bindings::gmem_rmp_lookup(frame.pfn().get(), &mut assigned, &mut large)
        })?;
        Ok(Entry { assigned, large })
    }

    fn assign(page: &PrivatePage<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed> {
        // SAFETY: The page is private, so the host has no mapping of it and gets none; the platform
        // checks the rest.
        outcome(unsafe { bindings::gmem_rmp_assign(page.frame().pfn().get(), gfn.get(), asid) })
    }

    fn unassign(frame: &Frame<'_>) -> Result<(), Failed> {
        // SAFETY: The frame is one of a file's.
        outcome(unsafe { bindings::gmem_rmp_unassign(frame.pfn().get()) })
    }

    fn assign_block(block: &PrivateBlock<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed> {
        let first = block.first().get();
        // SAFETY: All pages are private, so the host has no mapping of them and gets none; the platform
        // checks the rest.
        outcome(unsafe { bindings::gmem_rmp_assign_block(first, gfn.get(), asid) })
    }

    fn unassign_block(block: &PrivateBlock<'_>) -> Result<(), Failed> {
        // SAFETY: All pages of the block are the file's.
        outcome(unsafe { bindings::gmem_rmp_unassign_block(block.first().get()) })
    }

    fn smash(frame: &Frame<'_>) -> Result<(), Unsplit> {
        let mut in_use = false;
        // SAFETY: Splitting changes no owner, and `in_use` has room.
        match outcome(unsafe { bindings::gmem_rmp_smash(frame.pfn().get(), &mut in_use) }) {
            Ok(()) => Ok(()),
            Err(_) if in_use => Err(Unsplit::InUse),
            Err(_) => Err(Unsplit::Failed),
        }
    }

    fn relocate(page: &Relocation<'_>) -> Result<(), Unmoved> {
        let (from, to) = (page.from.pfn().get(), page.to.pfn().get());
        // SAFETY: The VM is valid, its guest has no mapping of the page, and `to` is nobody's.
        match unsafe { bindings::gmem_rmp_move(page.vm.as_raw(), page.gfn.get(), from, to) } {
            0 => Ok(()),
            code if code == EBUSY.to_errno() => Err(Unmoved::Stays),
            _ => Err(Unmoved::Lost),
        }
    }
}

/// The S-EPT that the TDX module keeps.
pub struct HardwareSept;

impl sealed::Sealed for HardwareSept {}

impl Sept for HardwareSept {
    const BASE: Base = Base::Hardware;

    fn prepare(_vm: &Vm, _gfn: Gfn, _frame: &Frame<'_>) -> Result<(), Failed> {
        Ok(())
    }

    fn contains(mmu: &MmuGuard<'_>, gfn: Gfn) -> bool {
        // SAFETY: The VM is valid, and its mmu_lock is held.
        unsafe { bindings::gmem_sept_contains(mmu.vm().as_raw(), gfn.get()) }
    }

    fn removal_zeroes(_vm: &Vm) -> bool {
        // SAFETY: Asks for a property of the machine.
        unsafe { bindings::gmem_sept_removal_zeroes() }
    }

    fn moves(_vm: &Vm) -> bool {
        // SAFETY: Asks for a property of this kernel.
        unsafe { bindings::gmem_sept_moves() }
    }

    fn prepare_to_move(_to: &Frame<'_>) -> Result<(), Failed> {
        Ok(())
    }

    fn relocate(mmu: &MmuGuard<'_>, page: &Relocation<'_>) -> Result<bool, Unmoved> {
        relocate_in_mirror(mmu, page)
    }
}

/// Has KVM move a page that it mirrors; the VM can have its pages moved.
pub(crate) fn relocate_in_mirror(
    mmu: &MmuGuard<'_>,
    page: &Relocation<'_>,
) -> Result<bool, Unmoved> {
    let (from, to) = (page.from.pfn().get(), page.to.pfn().get());
    // SAFETY: The VM is valid, and its mmu_lock held. `to` is nobody's, and nobody but the guest uses
    // the page.
    match unsafe { bindings::gmem_sept_move(mmu.vm().as_raw(), page.gfn.get(), from, to) } {
        0 => Ok(true),
        code if code == ENOENT.to_errno() => Ok(false),
        code if code == EBUSY.to_errno() => Err(Unmoved::Stays),
        _ => Err(Unmoved::Lost),
    }
}

/// Whether this machine has one.
pub(super) fn has_hardware_rmp() -> bool {
    // SAFETY: Asks for a property of the machine.
    unsafe { bindings::gmem_rmp_exists() }
}

/// What is asked of an S-EPT, as functions of one of its implementations.
#[derive(Clone, Copy)]
pub(crate) struct SeptQuestions {
    /// [`Sept::contains`].
    pub(crate) contains: fn(&MmuGuard<'_>, Gfn) -> bool,
    /// [`Sept::removal_zeroes`].
    pub(crate) removal_zeroes: fn(&Vm) -> bool,
    /// [`Sept::moves`].
    pub(crate) moves: fn(&Vm) -> bool,
    /// [`Sept::prepare_to_move`].
    pub(crate) prepare_to_move: fn(&Frame<'_>) -> Result<(), Failed>,
    /// [`Sept::relocate`].
    pub(crate) relocate: fn(&MmuGuard<'_>, &Relocation<'_>) -> Result<bool, Unmoved>,
}

impl SeptQuestions {
    pub(crate) const fn of<S: Sept>() -> Self {
        Self {
            contains: S::contains,
            removal_zeroes: S::removal_zeroes,
            moves: S::moves,
            prepare_to_move: S::prepare_to_move,
            relocate: S::relocate,
        }
    }
}
