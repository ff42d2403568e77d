// SPDX-License-Identifier: GPL-2.0

//! Which platform a VM is on, and whether it has given up a page.
//!
//! Two kinds of values are evidence that a platform has given a page up, and that it has zeroed it.
//! Only this file makes them, after it has checked the result. The host writes to no page without
//! one.

use crate::{
    bindings,
    kvm::{
        hardware::{
            has_hardware_rmp,
            outcome,
            Entry,
            Failed,
            HardwareRmp,
            HardwareSept,
            Rmp,
            SeptQuestions, //
        },
        stand_in,
        vm::{
            Gfn,
            MmuGuard,
            Pfn,
            Vm, //
        }, //
    },
    mm::folio::{
        FolioRef,
        Frame, //
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
use kernel::{
    error::to_result,
    prelude::*, //
};

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

/// Whether this host can have VMs on a platform. Models and tests stand in for platforms in VMs of
/// another type.
pub fn is_available(platform: Platform) -> bool {
    // SAFETY: Asks for a property of this kernel and machine.
    platform.base() == Base::Hardware
        && unsafe { bindings::gmem_platform_available(number(platform)) }
}

/// Whether files of the VM can have pages that move: nothing but the page tables of KVM and of the
/// host has a part in them, and where they are in memory does not matter to what they hold; or the
/// platform that has a part in them moves them.
pub fn can_move(vm: &Vm) -> bool {
    CAN_MOVE && (is_plain(vm) || of(vm).is_some_and(|platform| moves(platform, vm)))
}

/// Whether a platform that owns pages of the VM moves them.
fn moves(platform: Platform, vm: &Vm) -> bool {
    match sept(Some(platform)) {
        Some(sept) => (sept.moves)(vm),
        // SAFETY: Asks for a property of this kernel.
        None => platform.moves_pages() && unsafe { bindings::gmem_platform_moves() },
    }
}

/// Whether nobody but KVM and the host has a part in the pages of the VM's files.
fn is_plain(vm: &Vm) -> bool {
    let nobodys = match of(vm) {
        Some(platform) => !platform.owns_pages(),
        None => !vm.has_private_mem(),
    };
    // SAFETY: The VM is valid.
    nobodys && unsafe { bindings::gmem_vm_is_plain(vm.as_raw()) }
}

/// Whether there can be VMs here for which [`can_move`] is so: those of the default type are on
/// x86-64, and on arm64 those or protected ones.
pub const CAN_MOVE: bool = cfg!(all(CONFIG_MIGRATION, any(CONFIG_X86_64, CONFIG_ARM64)));

/// Whether a VM lets a page move that its platform was given at `gfn`, as far as is known before the
/// platform is asked to move it.
pub(crate) fn may_move(vm: &Vm, gfn: Gfn) -> bool {
    // SAFETY: The VM is valid.
    unsafe { bindings::gmem_rmp_may_move(vm.as_raw(), gfn.get()) }
}

/// Has the hypervisor move the page that the VM's guest has at `gfn` from one frame to another.
/// Returns whether the guest has one. If not, the host has it, and no guest gets it while it is
/// invalidated.
///
/// # Errors
///
/// What the hypervisor returns. The page is where it was then.
pub(crate) fn move_page(mmu: &MmuGuard<'_>, gfn: Gfn, from: Pfn, to: Pfn) -> Result<bool> {
    // SAFETY: The VM is valid, and its `mmu_lock` held. The hypervisor takes no frame that anybody
    // else has.
    let result = to_result(unsafe {
        bindings::gmem_vm_move_page(mmu.vm().as_raw(), gfn.get(), from.get(), to.get())
    });
    match result {
        Err(error) if error == ENOENT => Ok(false),
        result => result.map(|()| true),
    }
}

/// Whether files of the VM can have folios of more than one page. Each page that a platform owns has
/// a record of its own, also where it is given many at once.
pub fn has_large_folios(vm: &Vm) -> bool {
    HAS_LARGE_FOLIOS && is_plain(vm)
}

/// Whether there can be VMs here for which [`has_large_folios`] is so.
pub fn can_have_large_folios() -> bool {
    // SAFETY: Asks for a property of this kernel and machine.
    HAS_LARGE_FOLIOS && unsafe { bindings::gmem_has_plain_vms() }
}

/// Page caches have large folios only in kernels that have transparent huge pages, and none of 2 MiB
/// where their nodes are small. Where the MMU has no large mappings of guest_memfd there is no use for
/// one.
const HAS_LARGE_FOLIOS: bool = cfg!(all(
    CONFIG_TRANSPARENT_HUGEPAGE,
    CONFIG_HAVE_KVM_ARCH_GMEM_LARGE,
    not(CONFIG_BASE_SMALL)
));

/// The platform failed after the point of no return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fatal;

/// Whether a page with this RMP entry may belong to a guest or to firmware. If the entry cannot be
/// read, it may.
fn is_taken(entry: Result<Entry, Failed>) -> bool {
    entry.map_or(true, |entry| entry.assigned)
}

/// Whether an RMP can have pages as a guest's or firmware's here, whatever their VMs are.
#[inline]
pub(crate) fn has_rmp() -> bool {
    has_hardware_rmp() || (stand_in::is_any() && any_stand_in_has_rmp())
}

/// Out of line, so that each page that is freed does not pay for it.
#[cold]
fn any_stand_in_has_rmp() -> bool {
    stand_in::all().any(|other| other.has_rmp())
}

/// Whether an RMP has the page, or another one of its folio, as a guest's or firmware's, whatever the
/// page's record says and whatever its VM is. Always false on a machine without an RMP.
pub(crate) fn is_assigned(frame: &Frame<'_>) -> bool {
    frame.all().any(|frame| is_assigned_one(&frame))
}

fn is_assigned_one(frame: &Frame<'_>) -> bool {
    let mut said = stand_in::all().filter_map(|other| other.rmp_entry(frame));
    if said.any(is_taken) {
        return true;
    }
    has_hardware_rmp() && is_taken(HardwareRmp::lookup(frame))
}

/// Whether an RMP has the page as a guest's, in one entry with all of its block.
pub(crate) fn is_assigned_in_block(frame: &Frame<'_>) -> bool {
    let whole =
        |entry: Result<Entry, Failed>| entry.is_ok_and(|entry| entry.assigned && entry.large);
    let mut said = stand_in::all().filter_map(|other| other.rmp_entry(frame));
    said.any(whole) || (has_hardware_rmp() && whole(HardwareRmp::lookup(frame)))
}

/// The S-EPT of a platform's VMs, if they have one.
pub(crate) fn sept(platform: Option<Platform>) -> Option<SeptQuestions> {
    match platform?.sept()? {
        Base::Hardware => Some(SeptQuestions::of::<HardwareSept>()),
        base => stand_in::all()
            .find(|other| other.base() == base)
            .map(|other| other.sept()),
    }
}

/// Whether the VM's guest keeps the page at `gfn` from the host, and for how many of the `nr` pages
/// from there on the answer is the same (1 at least). If the page becomes the host's (`for_host`),
/// and the guest has asked to share it, the hypervisor shares it in this call, and the answer is
/// no.
pub(crate) fn keeps_from_host(
    platform: Option<Platform>,
    mmu: &MmuGuard<'_>,
    gfn: Gfn,
    nr: u64,
    for_host: bool,
) -> (bool, u64) {
    let (vm, gfn) = (mmu.vm(), gfn.get());
    if !platform.is_some_and(Platform::guest_decides) {
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

/// Evidence of what was done to the bytes of a page. Only the functions that do it make one.
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

    /// Whether it is the requested action.
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
    /// To be made only after these checks, see
    /// [`InvalidateSpan::given_up`](crate::kvm::mmu::InvalidateSpan::given_up): whether a platform
    /// has the folio, whether one has zeroed it when it gave it up, and whether the answers stay
    /// true.
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

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.folio.pages().len()
    }

    /// Zeroes all bytes of the folio, unless the platform has done so.
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

    /// Has the hypervisor zero all bytes of the folio, which checks in the same step that no guest
    /// owns it. A page that becomes private is zeroed once more when the hypervisor gives it to a
    /// guest, unless the host has mapped it in between: nobody on the host has a mapping of the
    /// page or a reference to it, or gets one without mapping it. A page that becomes shared may be
    /// written at once, through existing mappings and pins.
    ///
    /// # Errors
    ///
    /// [`Fatal`] if a guest owns it, or if there is no such hypervisor.
    pub fn zero_by_hypervisor(self) -> Result<Written<'f>, Fatal> {
        let frame = self.folio.frame();
        // SAFETY: The folio is one page, and the hypervisor writes none that anybody else has.
        outcome(unsafe { bindings::gmem_zero_by_hypervisor(frame.pfn().get()) })
            .map_err(|_| Fatal)?;
        frame.mark_zero(self.to == Visibility::Private);
        Ok(Written::new(Action::Zero))
    }

    /// Overwrites the folio, so that users do not rely on its contents.
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
