// SPDX-License-Identifier: GPL-2.0

//! SW_PROTECTED VMs that behave like those of a confidential platform, for development and tests.
//!
//! The models (`src/platform/emulation/`) decide what the platform's tables allow. This file
//! applies them to real pages and real VMs: the bytes become what the other side would see, the
//! page leaves the direct map while the platform owns it, and the MMU reports where mappings are
//! made and removed. The vendors work as on hardware.
//!
//! C header: [`include/uapi/linux/kvm_gmem.h`](../include/uapi/linux/kvm_gmem.h)

use crate::{
    bindings,
    fs::{
        inode::GmemInode,
        page_cache::LockedFolio, //
    },
    ioctl::UserPointer,
    kvm::{
        hardware::{
            self,
            Failed,
            Rmp,
            SeptQuestions, //
        },
        memslot::Memslot,
        platform,
        stand_in::{
            self,
            StandIn, //
        },
        vm::{
            Gfn,
            Pfn,
            Vm, //
        }, //
    },
    mm::folio::Frame, //
};
use access::Access;
use core::{
    mem::forget,
    ops::Range,
    ptr::{
        self,
        NonNull, //
    },
    sync::atomic::{
        AtomicU32,
        AtomicU64,
        Ordering, //
    }, //
};
use gate::Gate;
use gmem_policy::emulation::sept;
use gmem_types::platform::{
    Base,
    Platform, //
};
use kernel::{
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    new_spinlock,
    prelude::*,
    sync::SpinLock,
    types::ForeignOwnable, //
};
use page::Page;
use tdx::{
    Answer,
    Sept, //
};
use uapi::{
    Op,
    Place, //
};

mod access;
mod gate;
#[cfg(CONFIG_KVM_SNP_SIMULATION)]
mod machine;
mod module;
mod page;
mod snp;
mod tdx;
mod uapi;

pub use snp::ModelRmp;
pub use tdx::ModelSept;

/// Bytes in a page.
const PAGE: u64 = 4096;

/// The model that a VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    /// SEV-SNP's RMP.
    Snp,
    /// TDX's S-EPT.
    Tdx,
}

/// The emulation of one VM.
#[pin_data]
struct Emulation {
    model: Model,
    /// TDX: KVM mirrors its page table into the S-EPT, through the simulated module.
    mirrored: bool,
    /// The platform's identifier of the guest: SNP's ASID, TDX's HKID.
    id: u32,
    /// TDX: taking a page out of the S-EPT zeroes it.
    remove_zeroes: bool,
    /// Private pages that were taken out of the S-EPT without a reason.
    destroyed: AtomicU64,
    #[pin]
    sept: SpinLock<Sept>,
    #[pin]
    access: SpinLock<Access>,
    /// Between a guest fault's get_pfn() and `mmu_lock`.
    #[pin]
    fault: Gate,
    /// Before an invalidation begins.
    #[pin]
    invalidation: Gate,
}

impl Emulation {
    fn new(model: Model, mirrored: bool, remove_zeroes: bool) -> Result<Pin<KBox<Self>>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        /// The identifiers that fit into the record of a page.
        const IDS: u32 = 1 << 20;

        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        if id >= IDS {
            return Err(EBUSY);
        }
        KBox::pin_init(
            pin_init!(Self {
                model,
                mirrored,
                id,
                remove_zeroes,
                destroyed: AtomicU64::new(0),
                sept <- new_spinlock!(Sept::new()),
                access <- new_spinlock!(Access::new()),
                fault <- Gate::new(),
                invalidation <- Gate::new(),
            }),
            GFP_KERNEL,
        )
    }
}

/// The emulation of a VM, if it has one.
#[inline]
fn of(vm: &Vm) -> Option<&Emulation> {
    // SAFETY: The VM is valid.
    let emulation = unsafe { bindings::gmem_vm_emulation(vm.as_raw()) };
    // SAFETY: The pointer is set once, to what enable() has made, and freed with the VM.
    unsafe { emulation.cast::<Emulation>().as_ref() }
}

/// # Safety
///
/// To be called once, before there is a VM.
pub(crate) unsafe fn init() {
    // SAFETY: By the contract of this function.
    unsafe { snp::init() }
    stand_in::register(&Models);
}

/// The models, for the code below.
struct Models;

impl StandIn for Models {
    fn base(&self) -> Base {
        Base::Model
    }

    fn platform(&self, vm: &Vm) -> Option<Platform> {
        of(vm).map(|emulation| match emulation.model {
            Model::Snp => Platform::Snp(Base::Model),
            Model::Tdx => Platform::Tdx(Base::Model),
        })
    }

    fn has_rmp(&self) -> bool {
        ModelRmp::is_used()
    }

    fn rmp_entry(&self, frame: &Frame<'_>) -> Option<Result<hardware::Entry, Failed>> {
        frame.is_model().then(|| ModelRmp::lookup(frame))
    }

    fn sept(&self) -> SeptQuestions {
        SeptQuestions::of::<ModelSept>()
    }

    fn closes(&self, vm: &Vm) {
        // SAFETY: The VM is valid.
        unsafe { bindings::gmem_vm_close_emulation(vm.as_raw()) }
    }

    fn has_pfn(&self, vm: &Vm, gfn: Gfn) {
        if let Some(emulation) = of(vm) {
            emulation.fault.pass(gfn.get()..gfn.get().saturating_add(1));
        }
    }

    fn invalidates(&self, vm: &Vm, gfns: Range<u64>) {
        if let Some(emulation) = of(vm) {
            emulation.invalidation.pass(gfns);
        }
    }

    fn set_invalidating(&self, vm: &Vm, invalidating: bool) {
        if let Some(emulation) = of(vm) {
            emulation.sept.lock().set_invalidating(invalidating);
        }
    }

    fn settles(&self, vm: &Vm, inode: &GmemInode, slot: &Memslot, gfns: Range<u64>) {
        if let Some(emulation) = of(vm) {
            let mut sept = emulation.sept.lock();
            let destroyed = sept.settle(inode, slot, gfns.start, gfns.end);
            drop(sept);
            emulation.destroyed.fetch_add(destroyed, Ordering::Relaxed);
        }
    }

    fn freed(&self, frame: &Frame<'_>) {
        if !frame.is_model() || frame.is_leaked() {
            return;
        }
        let page = Page::new(frame);
        // Pages that the platform did not give back are out of the file now, but not free.
        if page.is_hidden() && !page.is_kept() {
            pr_err!(
                "emulation: pfn {:#x} is freed while it is a guest's\n",
                page.pfn()
            );
            page.show();
        }
    }
}

/// `KVM_CAP_GMEM_EMULATION`.
// CAST, here and below: bindgen gives a constant the smallest type that it fits into.
pub(crate) const CAP: u64 = bindings::KVM_CAP_GMEM_EMULATION as u64;
const EMULATE_SNP: u64 = bindings::KVM_GMEM_EMULATE_SNP as u64;
const EMULATE_TDX: u64 = bindings::KVM_GMEM_EMULATE_TDX as u64;
const EMULATE_TDX_MIRROR: u64 = bindings::KVM_GMEM_EMULATE_TDX_MIRROR as u64;
const REMOVE_ZEROES: u64 = bindings::KVM_GMEM_EMULATE_REMOVE_ZEROES as u64;

/// The capability's value on a VM, or on /dev/kvm.
pub(crate) fn capability(vm: Option<&Vm>) -> i32 {
    let possible =
        vm.is_none_or(|vm| of(vm).is_some() || platform::of(vm).is_some_and(|on| !on.owns_pages()));
    if !possible {
        return 0;
    }
    1 << EMULATE_SNP | 1 << EMULATE_TDX | i32::from(can_mirror()) << EMULATE_TDX_MIRROR
}

/// Whether KVM can mirror page tables here.
fn can_mirror() -> bool {
    // SAFETY: Asks for a property of this kernel and machine.
    unsafe { bindings::gmem_td_possible() }
}

/// The simulated module's data of a TD until a VM owns it, or NULL.
struct Td(*mut c_void);

impl Td {
    fn new(mirrored: bool) -> Result<Self> {
        if !mirrored {
            return Ok(Self(ptr::null_mut()));
        }
        // SAFETY: Allocates.
        let td = unsafe { bindings::gmem_td_create() };
        if td.is_null() {
            return Err(ENOMEM);
        }
        Ok(Self(td))
    }
}

impl Drop for Td {
    fn drop(&mut self) {
        // SAFETY: It is null, or comes from gmem_td_create() and has no other owner.
        unsafe { bindings::gmem_td_free(self.0) }
    }
}

/// KVM_ENABLE_CAP.
fn enable(vm: &Vm, cap: &bindings::kvm_enable_cap) -> Result {
    let [model, flags, 0, 0] = cap.args else {
        return Err(EINVAL);
    };
    let mirrored = model == EMULATE_TDX_MIRROR && can_mirror();
    let (model, zeroes) = match (model, flags) {
        (EMULATE_SNP, 0) => (Model::Snp, false),
        (EMULATE_TDX, 0) => (Model::Tdx, false),
        (EMULATE_TDX, REMOVE_ZEROES) => (Model::Tdx, true),
        (EMULATE_TDX_MIRROR, 0) if mirrored => (Model::Tdx, false),
        (EMULATE_TDX_MIRROR, REMOVE_ZEROES) if mirrored => (Model::Tdx, true),
        _ => return Err(EINVAL),
    };
    if u64::from(cap.cap) != CAP {
        return Err(EINVAL);
    }

    let td = Td::new(mirrored)?;
    let emulation = Emulation::new(model, mirrored, zeroes)?.into_foreign();
    // SAFETY: The VM is valid; the pointers become the VM's if the call succeeds.
    to_result(unsafe { bindings::gmem_vm_set_emulation(vm.as_raw(), emulation.cast(), td.0) })
        .inspect_err(|_| {
            // SAFETY: It comes from into_foreign(), and has no other owner.
            drop(unsafe { <Pin<KBox<Emulation>> as ForeignOwnable>::from_foreign(emulation) });
        })?;
    forget(td);
    Ok(())
}

/// `struct kvm_gmem_emulate`.
struct Operation {
    op: u32,
    kind: u32,
    gpa: u64,
    size: u64,
    uaddr: u64,
    value: [u64; 4],
}

impl Operation {
    fn from_words(words: [u64; 8]) -> Self {
        let [first, gpa, size, uaddr, a, b, c, d] = words;
        Self {
            // CAST: The two halves of the first word, lower one first.
            op: first as u32,
            kind: (first >> 32) as u32,
            gpa,
            size,
            uaddr,
            value: [a, b, c, d],
        }
    }

    fn to_words(&self) -> [u64; 8] {
        let [a, b, c, d] = self.value;
        let first = u64::from(self.op) | u64::from(self.kind) << 32;
        [first, self.gpa, self.size, self.uaddr, a, b, c, d]
    }

    fn gfn(&self) -> Result<Gfn> {
        if self.gpa % PAGE != 0 {
            return Err(EINVAL);
        }
        Ok(Gfn::new(self.gpa / PAGE))
    }

    /// Refuses arguments of a range for operations without one.
    fn no_range(&self) -> Result {
        if self.kind == 0 && self.size == 0 && self.uaddr == 0 {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }
}

/// The VM's ioctl.
fn ioctl(vm: &Vm, cmd: u32, arg: UserPointer) -> Result {
    if cmd != bindings::GMEM_IOCTL_EMULATE {
        return Err(ENOTTY);
    }
    #[cfg(CONFIG_KVM_SNP_SIMULATION)]
    if let Some(asid) = machine::asid(vm) {
        return machine::ioctl(vm, asid, arg);
    }
    let emulation = of(vm).ok_or(ENOTTY)?;
    let mut operation = Operation::from_words(arg.read()?);
    let op = Op::new(operation.op)?;
    let vcpu = match op {
        Op::LaunchUpdate if emulation.mirrored => Some(LaunchVcpu::lock(vm)?),
        _ => None,
    };
    // HOLD does not take slots_lock: its holder may be waiting for the task that is held.
    let _slots = (op != Op::Hold).then(|| vm.lock_slots());

    match op {
        Op::LaunchUpdate => launch_update(vm, emulation, vcpu.as_ref(), &mut operation)?,
        Op::LaunchFinish => launch_finish(vm, emulation, &operation)?,
        Op::Inject => inject(vm, emulation, &operation)?,
        Op::Query => query(vm, emulation, &mut operation)?,
        Op::Hold => hold(emulation, &mut operation)?,
        Op::Access => access(vm, emulation, &operation)?,
    }
    arg.write(&operation.to_words())
}

/// A vCPU whose memory caches and page table are used to map the pages of a launch. Nobody else
/// uses it meanwhile.
struct LaunchVcpu(*mut bindings::kvm_vcpu);

impl LaunchVcpu {
    /// Outer to slots_lock.
    fn lock(vm: &Vm) -> Result<Self> {
        // SAFETY: The VM is valid.
        let vcpu = unsafe { bindings::gmem_td_lock_vcpu(vm.as_raw()) };
        if vcpu.is_null() {
            return Err(EINVAL);
        }
        Ok(Self(vcpu))
    }

    /// Maps a page of the VM's file, which the module adds to the TD.
    ///
    /// # Safety
    ///
    /// The VM's slots_lock and the invalidate lock of the file must be held, and `source` null or
    /// pinned.
    unsafe fn map(&self, gfn: Gfn, frame: &Frame<'_>, source: *mut bindings::page) -> Result {
        // SAFETY: The vCPU is locked; the rest by the contract of this function.
        to_result(unsafe {
            bindings::gmem_td_load_vcpu(self.0);
            let r = bindings::gmem_td_map(self.0, gfn.get(), frame.pfn().get(), source);
            bindings::gmem_td_put_vcpu(self.0);
            r
        })
    }
}

impl Drop for LaunchVcpu {
    fn drop(&mut self) {
        // SAFETY: It was locked by lock().
        unsafe { bindings::gmem_td_unlock_vcpu(self.0) }
    }
}

/// The arguments that all pages of one LAUNCH_UPDATE share.
struct Launch<'a> {
    emulation: &'a Emulation,
    vcpu: Option<&'a LaunchVcpu>,
    kind: snp::PageType,
}

/// LAUNCH_UPDATE; slots_lock is held.
fn launch_update(
    vm: &Vm,
    emulation: &Emulation,
    vcpu: Option<&LaunchVcpu>,
    operation: &mut Operation,
) -> Result {
    use snp::PageType;

    let gfn = operation.gfn()?;
    let pages = operation.size / PAGE;
    let kind = uapi::page_type(emulation.model, operation.kind)?;
    if vm.is_launched()
        || pages == 0
        || operation.size % PAGE != 0
        || operation.gpa.checked_add(operation.size).is_none()
        || operation.value != [0; 4]
    {
        return Err(EINVAL);
    }
    let source = match kind {
        PageType::Zero => 0,
        _ => operation.uaddr,
    };
    if source == 0 && kind != PageType::Zero && is_ordinary(vm, gfn) {
        return Err(match emulation.model {
            Model::Snp => EINVAL,
            Model::Tdx => EOPNOTSUPP,
        });
    }

    let mut launch = Launch {
        emulation,
        vcpu,
        kind,
    };
    // SAFETY: slots_lock is held; the callback gets the pointer while `launch` lives.
    let done = unsafe {
        bindings::kvm_gmem_populate(
            vm.as_raw(),
            gfn.get(),
            ptr::without_provenance_mut(source as usize),
            pages as c_long,
            kind == PageType::Cpuid,
            Some(launch_page),
            (&raw mut launch).cast(),
        )
    };
    // CAST: An error is small.
    let done = u64::try_from(done).map_err(|_| Error::from_errno(done as c_int))?;

    let bytes = done.saturating_mul(PAGE).min(operation.size);
    operation.gpa += bytes;
    operation.size -= bytes;
    if source != 0 {
        operation.uaddr = operation.uaddr.saturating_add(bytes);
    }
    Ok(())
}

/// Whether there is a file behind `gfn` that does not convert in place; slots_lock is held.
fn is_ordinary(vm: &Vm, gfn: Gfn) -> bool {
    // SAFETY: The VM is valid, and slots_lock is held.
    unsafe {
        let slot = bindings::gmem_vm_gmem_slot(vm.as_raw(), gfn.get());
        !slot.is_null() && (*slot).flags & bindings::GMEM_SLOT_IN_PLACE == 0
    }
}

/// # Safety
///
/// To be called by kvm_gmem_populate() only, with the `opaque` of launch_update().
unsafe extern "C" fn launch_page(
    kvm: *mut bindings::kvm,
    gfn: bindings::gfn_t,
    pfn: bindings::kvm_pfn_t,
    source: *mut bindings::page,
    opaque: *mut c_void,
) -> c_int {
    from_result(|| {
        // SAFETY: By the contract of this function. The invalidate lock of the page's file is held
        // exclusively, as frames want it.
        let (vm, launch, frame) = unsafe {
            let folio = NonNull::new(bindings::gmem_pfn_folio(pfn)).ok_or(EINVAL)?;
            (
                Vm::from_raw(kvm),
                &*opaque.cast::<Launch<'_>>(),
                Frame::from_raw(folio),
            )
        };
        let gfn = Gfn::new(gfn);
        let emulation = launch.emulation;
        match emulation.model {
            // SAFETY: The lock is held, and the source pinned as launch_update() has asked for.
            Model::Snp => unsafe { snp::launch(emulation.id, gfn, &frame, launch.kind, source)? },
            Model::Tdx => {
                Sept::prepare(&emulation.sept, gfn, &frame)?;
                if let Some(vcpu) = launch.vcpu {
                    // SAFETY: launch_update() holds slots_lock, and kvm_gmem_populate() the lock of
                    // the file, and the source pinned.
                    unsafe { vcpu.map(gfn, &frame, source)? };
                    return Ok(0);
                }
                if !source.is_null() {
                    if Page::new(&frame).is_hidden() {
                        return Err(EEXIST);
                    }
                    // SAFETY: The source is pinned.
                    unsafe { Page::new(&frame).copy_from(source) };
                }
                let _mmu = vm.lock_mmu();
                emulation.sept.lock().add(gfn, &frame)?;
            }
        }
        Ok(0)
    })
}

/// LAUNCH_FINISH; slots_lock is held.
fn launch_finish(vm: &Vm, emulation: &Emulation, operation: &Operation) -> Result {
    operation.no_range()?;
    if vm.is_launched() || operation.gpa != 0 || operation.value != [0; 4] {
        return Err(EINVAL);
    }
    if emulation.model == Model::Tdx {
        emulation.sept.lock().finalize()?;
    }
    if emulation.mirrored {
        // SAFETY: The VM is valid, and a TD.
        unsafe { bindings::gmem_td_finalize(vm.as_raw()) };
    }
    // SAFETY: The VM is valid, and slots_lock is held.
    unsafe { bindings::gmem_vm_set_launched(vm.as_raw()) };
    Ok(())
}

/// INJECT; slots_lock is held.
fn inject(vm: &Vm, emulation: &Emulation, operation: &Operation) -> Result {
    operation.no_range()?;
    let gfn = operation.gfn()?;
    match emulation.model {
        Model::Snp => {
            let fault = uapi::rmp_fault(operation.value)?;
            snp::inject(make_page(vm, gfn)?, fault)
        }
        Model::Tdx => {
            let fault = uapi::sept_fault(operation.value)?;
            Sept::inject(&emulation.sept, gfn, fault)
        }
    }
}

/// QUERY; slots_lock is held.
fn query(vm: &Vm, emulation: &Emulation, operation: &mut Operation) -> Result {
    operation.no_range()?;
    let gfn = operation.gfn()?;
    let (state, at, owner) = match emulation.model {
        Model::Snp => {
            let (state, gfn, owner) = snp::query(find_page(vm, gfn)?);
            (state, gfn, owner.unwrap_or(0))
        }
        Model::Tdx => {
            let (entry, tracked) = emulation.sept.lock().look(gfn);
            let state = uapi::sept_state(&entry, tracked);
            match entry {
                sept::Entry::Absent => (state, 0, 0),
                _ => (state, gfn.get(), emulation.id),
            }
        }
    };
    let destroyed = emulation.destroyed.load(Ordering::Relaxed);
    operation.value = [state.into(), at, owner.into(), destroyed];
    Ok(())
}

/// ACCESS; slots_lock is held.
fn access(vm: &Vm, emulation: &Emulation, operation: &Operation) -> Result {
    operation.no_range()?;
    let gfn = operation.gfn()?;
    if emulation.mirrored {
        return Err(EOPNOTSUPP);
    }
    let private = uapi::access(operation.value)?;
    emulation.access.lock().set(gfn.get(), private)?;
    // SAFETY: The VM is valid, and its mmu_lock, which is taken inside, is not held.
    unsafe { bindings::gmem_vm_fault_again(vm.as_raw(), gfn.get()) };
    Ok(())
}

/// HOLD.
fn hold(emulation: &Emulation, operation: &mut Operation) -> Result {
    operation.no_range()?;
    let gfn = operation.gfn()?;
    let [place, close, 0, 0] = operation.value else {
        return Err(EINVAL);
    };
    let gate = match Place::new(place)? {
        Place::Fault => &emulation.fault,
        Place::Invalidation => &emulation.invalidation,
    };
    let closed = match close {
        0 => None,
        1 => Some(gfn),
        _ => return Err(EINVAL),
    };
    operation.value = [place, close, gate.set(closed), 0];
    Ok(())
}

/// The slot with `gfn`; slots_lock is held, and `vm` only stands for it.
fn slot(vm: &Vm, gfn: Gfn) -> Result<&Memslot> {
    // SAFETY: The VM is valid, and slots_lock is held.
    let slot = unsafe { bindings::gmem_vm_gmem_slot(vm.as_raw(), gfn.get()) };
    if slot.is_null() {
        return Err(ENOENT);
    }
    // SAFETY: The slot stays while slots_lock is held.
    Ok(unsafe { Memslot::from_raw(slot) })
}

/// The page behind `gfn`; if there is none yet it is allocated, but not used.
fn make_page(vm: &Vm, gfn: Gfn) -> Result<Pfn> {
    let slot = slot(vm, gfn)?;
    let at = slot.index_of(gfn).ok_or(ENOENT)?;
    let file = slot.active_file().ok_or(ENOENT)?;
    let inode = file.inode();
    inode.locked_shared(|_guard| Ok(LockedFolio::get(inode, at)?.pfn()))
}

/// The page behind `gfn`, if there is one.
fn find_page(vm: &Vm, gfn: Gfn) -> Result<Option<Pfn>> {
    let slot = slot(vm, gfn)?;
    let at = slot.index_of(gfn).ok_or(ENOENT)?;
    let file = slot.active_file().ok_or(ENOENT)?;
    // SAFETY: The mapping of a live inode is valid.
    let folio = from_err_ptr(unsafe {
        bindings::gmem_filemap_lock_folio(file.inode().mapping(), at.get() as usize)
    });
    let Ok(folio) = folio else {
        return Ok(None);
    };
    // SAFETY: The folio is locked, with a reference; both are given back.
    let pfn = unsafe {
        let page = bindings::gmem_folio_file_page(folio, at.get() as usize);
        let pfn = bindings::gmem_page_pfn(page);
        bindings::gmem_folio_unlock_put(folio);
        pfn
    };
    Ok(Some(Pfn::new(pfn)))
}

/// The MMU is about to map `pfn` at `gfn`: whether the platform lets the guest use it.
fn install(emulation: &Emulation, gfn: Gfn, pfn: Pfn, private: bool) -> Result<Answer, Failed> {
    match emulation.model {
        Model::Snp => {
            snp::install(emulation.id, gfn, pfn, private)?;
            Ok(Answer::Go)
        }
        // The MMU asks the module.
        Model::Tdx if private && emulation.mirrored => Ok(Answer::Go),
        Model::Tdx if private => emulation.sept.lock().install(gfn, pfn),
        // SAFETY: Whatever the number is, it is only looked up.
        Model::Tdx if unsafe { bindings::gmem_direct_map_lacks(pfn.get()) } => {
            Err(Failed::Platform)
        }
        Model::Tdx => Ok(Answer::Go),
    }
}

/// The C functions that KVM calls; see `arch/x86/kvm/gmem_emulation.h`.
#[allow(missing_docs, clippy::missing_safety_doc)]
mod entry_points {
    use super::*;

    #[no_mangle]
    unsafe extern "C" fn kvm_gmem_emulation_enable(
        kvm: *mut bindings::kvm,
        cap: *mut bindings::kvm_enable_cap,
    ) -> c_int {
        from_result(|| {
            // SAFETY: KVM passes valid pointers.
            let (vm, cap) = unsafe { (Vm::from_raw(kvm), &*cap) };
            enable(vm, cap)?;
            Ok(0)
        })
    }

    #[no_mangle]
    unsafe extern "C" fn kvm_gmem_emulation_ioctl(
        kvm: *mut bindings::kvm,
        cmd: c_uint,
        arg: c_ulong,
    ) -> c_int {
        from_result(|| {
            // SAFETY: KVM passes a valid pointer.
            ioctl(unsafe { Vm::from_raw(kvm) }, cmd, UserPointer::new(arg))?;
            Ok(0)
        })
    }

    #[no_mangle]
    unsafe extern "C" fn kvm_gmem_emulation_access(
        kvm: *mut bindings::kvm,
        gfn: bindings::gfn_t,
        private: bool,
    ) -> bool {
        // SAFETY: KVM passes a valid pointer.
        let vm = unsafe { Vm::from_raw(kvm) };
        of(vm)
            .and_then(|emulation| emulation.access.lock().of(gfn))
            .unwrap_or(private)
    }

    #[no_mangle]
    unsafe extern "C" fn kvm_gmem_emulation_install(
        kvm: *mut bindings::kvm,
        gfn: bindings::gfn_t,
        pfn: bindings::kvm_pfn_t,
        private: bool,
    ) -> c_int {
        from_result(|| {
            // SAFETY: KVM passes a valid pointer.
            let vm = unsafe { Vm::from_raw(kvm) };
            let Some(emulation) = of(vm) else {
                return Ok(0);
            };
            match install(emulation, Gfn::new(gfn), Pfn::new(pfn), private) {
                Ok(Answer::Go) => Ok(0),
                Ok(Answer::Retry) => Ok(1),
                Err(failed) => {
                    pr_warn!("emulation: gfn {gfn:#x} must not have pfn {pfn:#x}\n");
                    Err(failed.into())
                }
            }
        })
    }

    #[no_mangle]
    unsafe extern "C" fn kvm_gmem_emulation_remove(
        kvm: *mut bindings::kvm,
        start: bindings::gfn_t,
        end: bindings::gfn_t,
    ) {
        // SAFETY: KVM passes a valid pointer.
        let vm = unsafe { Vm::from_raw(kvm) };
        // For a TD, the MMU has had each page removed by the module.
        if let Some(emulation) = of(vm).filter(|emulation| !emulation.mirrored) {
            let zeroes = emulation.remove_zeroes;
            emulation.sept.lock().remove(vm, start, end, zeroes);
        }
    }

    #[no_mangle]
    unsafe extern "C" fn kvm_gmem_emulation_destroy(kvm: *mut bindings::kvm) {
        // SAFETY: KVM passes a valid pointer, for the last time.
        let emulation = unsafe { bindings::gmem_vm_emulation(kvm) };
        // SAFETY: As above. It is null, or has no other user any more.
        drop(Td(unsafe { bindings::gmem_vm_take_td(kvm) }));
        if !emulation.is_null() {
            // SAFETY: It comes from into_foreign(), and the VM has no other user any more.
            drop(unsafe {
                <Pin<KBox<Emulation>> as ForeignOwnable>::from_foreign(emulation.cast())
            });
        }
    }
}
