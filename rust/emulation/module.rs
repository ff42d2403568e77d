// SPDX-License-Identifier: GPL-2.0

//! The simulated TDX module's operations on pages, for the SEAMCALLs of `mirror.c`.
//!
//! Called under `mmu_lock`; except for PAGE.ADD and PAGE.AUG it is held for writing.

use super::{
    of,
    tdx::Sept, //
};
use crate::{
    bindings,
    kvm::vm::{
        Pfn,
        Vm, //
    }, //
};
use gmem_policy::emulation::sept::Failure;
use kernel::prelude::*;

/// Calls `f` with the VM and its S-EPT.
///
/// # Safety
///
/// `kvm` must be valid.
unsafe fn seamcall(
    kvm: *mut bindings::kvm,
    f: impl FnOnce(&Vm, &mut Sept) -> Result<(), Failure>,
) -> c_int {
    // SAFETY: By the contract of this function.
    let vm = unsafe { Vm::from_raw(kvm) };
    let result = match of(vm) {
        Some(emulation) => f(vm, &mut emulation.sept.lock()),
        None => Err(Failure::Input),
    };
    let code = match result {
        Ok(()) => bindings::GMEM_SEAMCALL_DONE,
        Err(Failure::Busy) => bindings::GMEM_SEAMCALL_BUSY,
        Err(Failure::Input) => bindings::GMEM_SEAMCALL_INPUT,
        Err(Failure::State) => bindings::GMEM_SEAMCALL_STATE,
    };
    // CAST: It is one of four small numbers.
    code as c_int
}

/// # Safety
///
/// `kvm` must be valid. `pfn` is the file's page for `gfn`, and `source` a pinned page.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_page_add(
    kvm: *mut bindings::kvm,
    gfn: bindings::gfn_t,
    pfn: bindings::kvm_pfn_t,
    source: *mut bindings::page,
) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe {
        seamcall(kvm, |vm, sept| {
            sept.page_add(vm, gfn, Pfn::new(pfn), source)
        })
    }
}

/// # Safety
///
/// `kvm` must be valid, and `pfn` the file's page for `gfn`.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_page_aug(
    kvm: *mut bindings::kvm,
    gfn: bindings::gfn_t,
    pfn: bindings::kvm_pfn_t,
) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe { seamcall(kvm, |vm, sept| sept.page_aug(vm, gfn, Pfn::new(pfn))) }
}

/// # Safety
///
/// `kvm` must be valid.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_range_block(
    kvm: *mut bindings::kvm,
    gfn: bindings::gfn_t,
) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe { seamcall(kvm, |vm, sept| sept.range_block(vm, gfn)) }
}

/// # Safety
///
/// `kvm` must be valid.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_track(kvm: *mut bindings::kvm) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe { seamcall(kvm, |_vm, sept| sept.track()) }
}

/// # Safety
///
/// `kvm` must be valid.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_page_remove(
    kvm: *mut bindings::kvm,
    gfn: bindings::gfn_t,
) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe { seamcall(kvm, |vm, sept| sept.page_remove(vm, gfn)) }
}

/// # Safety
///
/// `kvm` must be valid, and `pfn` memory that nobody has, to take the place of the file's page for
/// `gfn`.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_page_relocate(
    kvm: *mut bindings::kvm,
    gfn: bindings::gfn_t,
    pfn: bindings::kvm_pfn_t,
) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe { seamcall(kvm, |vm, sept| sept.page_relocate(vm, gfn, Pfn::new(pfn))) }
}

/// # Safety
///
/// `kvm` must be valid.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_range_unblock(
    kvm: *mut bindings::kvm,
    gfn: bindings::gfn_t,
) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe { seamcall(kvm, |vm, sept| sept.range_unblock(vm, gfn)) }
}

/// # Safety
///
/// `kvm` must be valid, and `pfn` a page of one of its files.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_page_wbinvd(
    kvm: *mut bindings::kvm,
    pfn: bindings::kvm_pfn_t,
) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe { seamcall(kvm, |_vm, sept| sept.page_wbinvd(Pfn::new(pfn))) }
}

/// Zeroes a page that was given back, on machines where that is done.
///
/// # Safety
///
/// `kvm` must be valid, and `pfn` a page of one of its files.
#[no_mangle]
unsafe extern "C" fn kvm_gmem_module_page_reset(kvm: *mut bindings::kvm, pfn: bindings::kvm_pfn_t) {
    // SAFETY: By the contract of this function.
    let vm = unsafe { Vm::from_raw(kvm) };
    if of(vm).is_some_and(|emulation| emulation.remove_zeroes) {
        Sept::page_reset(Pfn::new(pfn));
    }
}
