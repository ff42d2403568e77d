// SPDX-License-Identifier: GPL-2.0

//! What keeps private memory private underneath the vendors, and what it says of a page.
//!
//! SNP has the RMP, a table with an entry for each page of the host; TDX has the S-EPT, a page
//! table for each guest. Both are small traits here, with two implementations: the kernel's
//! functions and a software model. Vendor code is the same over both, and has no say in which it
//! is.
//!
//! That a platform has given a page up, and that it has zeroed it, are values that only this file
//! makes, after it has looked for itself: the host writes to no page without one.
//!
//! C headers: [`arch/x86/include/asm/sev.h`](srctree/arch/x86/include/asm/sev.h),
//! [`arch/x86/kvm/mmu.h`](srctree/arch/x86/kvm/mmu.h)

use crate::{
    bindings,
    kvm::{
        stand_in,
        vm::{
            Gfn,
            MmuGuard,
            Vm, //
        }, //
    },
    mm::folio::{
        FolioRef,
        Frame,
        PrivatePage, //
    }, //
};
use core::marker::PhantomData;
use gmem_types::{
    content::Action,
    platform::{
        Base,
        Platform, //
    },
    visibility::Visibility, //
};
use kernel::prelude::*;

/// Only what is listed here is believed.
pub(crate) mod sealed {
    pub trait Sealed {}
}

/// The number by which the C side knows a platform.
fn number(platform: Platform) -> u32 {
    match platform {
        Platform::SwProtected => bindings::GMEM_PLATFORM_SW_PROTECTED,
        Platform::Snp(_) => bindings::GMEM_PLATFORM_SNP,
        Platform::Tdx(_) => bindings::GMEM_PLATFORM_TDX,
        Platform::Pkvm => bindings::GMEM_PLATFORM_PKVM,
    }
}

/// The platform that a VM is on; [`None`] if this crate does not know such VMs.
///
/// Files keep the answer: it does not change once a VM has one.
pub fn of(vm: &Vm) -> Option<Platform> {
    if let Some(platform) = stand_in::all().find_map(|other| other.platform(vm)) {
        return Some(platform);
    }
    // SAFETY: The VM is valid.
    let known = unsafe { bindings::gmem_vm_platform(vm.as_raw()) };
    Platform::ALL
        .iter()
        .copied()
        .find(|&platform| number(platform) == known)
}

/// Whether there can be VMs on a platform here. Models and tests stand in for one in VMs of another
/// type.
pub fn is_available(platform: Platform) -> bool {
    // SAFETY: Asks for a property of this kernel and machine.
    platform.base() == Base::Hardware
        && unsafe { bindings::gmem_platform_available(number(platform)) }
}

/// Whether pages can be the platform's, so that the host may not write them.
#[inline]
pub(crate) fn owns_pages(platform: Platform) -> bool {
    platform != Platform::SwProtected
}

/// Whether the hypervisor takes guests' pages back when they are to be freed.
#[inline]
pub(crate) fn takes_back(platform: Platform) -> bool {
    platform == Platform::Pkvm
}

/// Whether the host can find a page to be its own and lose it before it has written it: the guest
/// takes pages back by itself. Only the hypervisor can write such pages safely.
#[inline]
pub(crate) fn takes_by_itself(platform: Platform) -> bool {
    platform == Platform::Pkvm
}

/// What a platform answers that does not do what it was asked for, or whose answer is none that it
/// should give.
///
/// User space hears `EIO` of it. It never is `EFAULT`, which comes with KVM_RUN's request to convert
/// the page: that helps against no failure of a platform, and would be tried for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The platform failed.
    Platform,
    /// There was no memory, and nothing has been asked of the platform.
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

/// What the code of a C function means. 0 is success, and nothing else: instructions fail with
/// positive codes, which [`to_result`](kernel::error::to_result) takes for success.
pub(crate) fn outcome(code: c_int) -> Result<(), Failed> {
    match code {
        0 => Ok(()),
        _ => Err(Failed::Platform),
    }
}

/// The platform failed where there is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fatal;

/// What the RMP says of a page.
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
    /// Somebody else is changing it, which does not take long.
    InUse,
    /// The platform failed, or there is no such entry any more.
    Failed,
}

/// SNP's table of whose each page of the host is.
///
/// Updates do not look at what was before. Whoever calls them does, and nobody else assigns or
/// takes back the pages of a file meanwhile: the folio is locked, or the invalidate lock held.
pub trait Rmp: sealed::Sealed {
    /// What it is.
    const BASE: Base;

    /// The number by which the table knows a guest.
    ///
    /// # Errors
    ///
    /// [`Failed`] if there is none.
    fn asid(vm: &Vm) -> Result<u32, Failed>;

    /// What the table says now.
    ///
    /// # Errors
    ///
    /// [`Failed`] if there is no such table or entry, or if it cannot be read. The page then is not
    /// known to be the host's.
    fn lookup(frame: &Frame<'_>) -> Result<Entry, Failed>;

    /// Gives one page, which the host does not have, to the guest with `asid`, to be seen at `gfn`.
    ///
    /// # Errors
    ///
    /// [`Failed`]. The entry is unchanged.
    fn assign(page: &PrivatePage<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed>;

    /// Takes one page back, and flushes what caches have of it.
    ///
    /// # Errors
    ///
    /// [`Failed`]. The entry is unchanged.
    fn unassign(frame: &Frame<'_>) -> Result<(), Failed>;

    /// Tries once to split the entry for 2M that the page is in.
    ///
    /// # Errors
    ///
    /// [`Unsplit`]. The entry is unchanged by this.
    fn smash(frame: &Frame<'_>) -> Result<(), Unsplit>;
}

/// TDX's page table of a guest's private pages.
pub trait Sept: sealed::Sealed {
    /// What it is.
    const BASE: Base;

    /// Gets ready for the page to be mapped at `gfn`; may sleep, which the mapping may not.
    ///
    /// # Errors
    ///
    /// [`Failed`].
    fn prepare(vm: &Vm, gfn: Gfn, frame: &Frame<'_>) -> Result<(), Failed>;

    /// Whether there is a page at `gfn` of the VM.
    fn contains(mmu: &MmuGuard<'_>, gfn: Gfn) -> bool;

    /// Whether taking a page out leaves zeroes in it.
    fn removal_zeroes(vm: &Vm) -> bool;
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
        // SAFETY: The page is private, so that the host has no mapping of it and gets none; the
        // platform checks the rest.
        outcome(unsafe { bindings::gmem_rmp_assign(page.frame().pfn().get(), gfn.get(), asid) })
    }

    fn unassign(frame: &Frame<'_>) -> Result<(), Failed> {
        // SAFETY: The frame is one of a file's.
        outcome(unsafe { bindings::gmem_rmp_unassign(frame.pfn().get()) })
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
}

/// Whether a page with this entry is somebody's. One that cannot be looked up is not known to be the
/// host's.
fn is_taken(entry: Result<Entry, Failed>) -> bool {
    entry.map_or(true, |entry| entry.assigned)
}

/// Whether pages can be somebody's in an RMP here, whatever their VMs are.
pub(crate) fn has_rmp() -> bool {
    stand_in::all().any(|other| other.has_rmp()) || has_hardware_rmp()
}

fn has_hardware_rmp() -> bool {
    // SAFETY: Asks for a property of the machine.
    unsafe { bindings::gmem_rmp_exists() }
}

/// Whether the page is somebody's in an RMP, whatever is remembered of it and whatever its VM is. A
/// machine without an RMP has none that is.
pub(crate) fn is_assigned(frame: &Frame<'_>) -> bool {
    let mut said = stand_in::all().filter_map(|other| other.rmp_entry(frame));
    if said.any(is_taken) {
        return true;
    }
    has_hardware_rmp() && is_taken(HardwareRmp::lookup(frame))
}

/// What is asked of the S-EPT that a platform's VMs have, whichever it is.
#[derive(Clone, Copy)]
pub(crate) struct SeptQuestions {
    /// [`Sept::contains`].
    pub(crate) contains: fn(&MmuGuard<'_>, Gfn) -> bool,
    /// [`Sept::removal_zeroes`].
    pub(crate) removal_zeroes: fn(&Vm) -> bool,
}

impl SeptQuestions {
    pub(crate) const fn of<S: Sept>() -> Self {
        Self {
            contains: S::contains,
            removal_zeroes: S::removal_zeroes,
        }
    }
}

/// The S-EPT of a platform's VMs, if they have one.
pub(crate) fn sept(platform: Option<Platform>) -> Option<SeptQuestions> {
    match platform? {
        Platform::Tdx(Base::Hardware) => Some(SeptQuestions::of::<HardwareSept>()),
        Platform::Tdx(base) => stand_in::all()
            .find(|other| other.base() == base)
            .map(|other| other.sept()),
        _ => None,
    }
}

/// Whether the VM's guest keeps the page at `gfn` from the host, and for how many of the `nr` pages
/// from there on the answer is the same (1 at least). A page that becomes the host's, `for_host`, is
/// not kept by a guest that has asked to share it: the hypervisor shares it with this question.
pub(crate) fn keeps_from_host(
    platform: Option<Platform>,
    mmu: &MmuGuard<'_>,
    gfn: Gfn,
    nr: u64,
    for_host: bool,
) -> (bool, u64) {
    let (vm, gfn) = (mmu.vm(), gfn.get());
    if platform != Some(Platform::Pkvm) {
        return (false, nr);
    }
    let mut same = 0;
    // SAFETY: The VM is valid, its `mmu_lock` held, and `same` has room.
    let keeps =
        unsafe { bindings::gmem_vm_keeps_from_host(vm.as_raw(), gfn, nr, for_host, &mut same) };
    (keeps, same.clamp(1, nr.max(1)))
}

/// The platform has filled the page with zeroes.
struct Zeroed;

/// What was done to the bytes of a page. Only what does it makes one.
pub struct Written<'f> {
    how: Action,
    _page: PhantomData<&'f ()>,
}

impl<'f> Written<'f> {
    fn new(how: Action) -> Self {
        Self {
            how,
            _page: PhantomData,
        }
    }

    /// Whether it is what was asked for.
    pub(crate) fn is(&self, wanted: Action) -> bool {
        self.how == wanted
    }
}

/// A folio that no platform has: it may be written until the invalidate lock is released, by the
/// host if no guest can take it by itself.
pub struct GivenUp<'f> {
    folio: &'f FolioRef<'f>,
    to: Visibility,
    zeroed: Option<Zeroed>,
    host_writes: bool,
}

impl<'f> GivenUp<'f> {
    /// To be made after looking, see
    /// [`InvalidateSpan::given_up`](crate::kvm::mmu::InvalidateSpan::given_up): for whether a
    /// platform has the folio, for whether one has zeroed it when it gave it up, and for whether
    /// the answers stay true.
    pub(super) fn new(
        folio: &'f FolioRef<'f>,
        to: Visibility,
        zeroed: bool,
        host_writes: bool,
    ) -> Self {
        folio.frame().mark_in_sept(false);
        Self {
            folio,
            to,
            zeroed: zeroed.then_some(Zeroed),
            host_writes,
        }
    }

    /// Makes all bytes of it zero, unless the platform has.
    ///
    /// # Errors
    ///
    /// [`Fatal`] if the host may not write it.
    pub fn zero(self) -> Result<Written<'f>, Fatal> {
        match (self.zeroed, self.host_writes) {
            (Some(Zeroed), _) => {}
            (None, true) => self.folio.zero(),
            (None, false) => return Err(Fatal),
        }
        Ok(Written::new(Action::Zero))
    }

    /// Has the hypervisor make all bytes of it zero, which makes sure that it is not a guest's in
    /// the same step. A page that is going to be private is zeroed once more when the hypervisor
    /// gives it to a guest, unless the host has mapped it in between: nobody on the host has a
    /// mapping of it or a reference to it, or gets one without mapping it. What is going to be
    /// shared may be written at once, by whoever has it mapped or pinned already.
    ///
    /// # Errors
    ///
    /// [`Fatal`] if it is, or if there is no such hypervisor.
    pub fn zero_by_hypervisor(self) -> Result<Written<'f>, Fatal> {
        let frame = self.folio.frame();
        // SAFETY: The folio is one page, and the hypervisor writes none that anybody else has.
        outcome(unsafe { bindings::gmem_zero_by_hypervisor(frame.pfn().get()) })
            .map_err(|_| Fatal)?;
        frame.mark_zero(self.to == Visibility::Private);
        Ok(Written::new(Action::Zero))
    }

    /// Fills it, so that nobody relies on what was there.
    ///
    /// # Errors
    ///
    /// [`Fatal`] if the host may not write it.
    pub fn scramble(self, byte: u8) -> Result<Written<'f>, Fatal> {
        if !self.host_writes {
            return Err(Fatal);
        }
        self.folio.fill(byte);
        Ok(Written::new(Action::Scramble))
    }
}
