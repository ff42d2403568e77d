// SPDX-License-Identifier: GPL-2.0

//! The `fault` operation of a mapping.

use crate::{
    bindings,
    fs::{
        address_space::Stable,
        fault::{
            HostFault,
            Served, //
        },
        inode::GmemInode, //
    },
    guest_memfd::GuestMemfd, //
};
use kernel::prelude::*;

/// The `fault` operation.
///
/// # Safety
///
/// To be called by the fault handling core only.
pub(crate) unsafe extern "C" fn fault<T: GuestMemfd>(
    vmf: *mut bindings::vm_fault,
) -> bindings::vm_fault_t {
    // SAFETY: The mapping's file is one of ours and is there while mmap_lock or the VMA lock is held.
    let locks = unsafe { GmemInode::of_file((*(*vmf).__bindgen_anon_1.vma).vm_file) }.fault_lock();
    if let Some(mapping) = locks {
        // SAFETY: The fault is one of this mapping. If the lock is not taken, neither the fault's
        // VMA nor the file may be there any more, and neither is used.
        let result = unsafe { bindings::gmem_fault_lock(vmf, mapping) };
        if result != 0 {
            return result;
        }
    }
    // SAFETY: The core handles a fault, and the mapping's operations are ours. As mmap_lock or the
    // VMA lock was not dropped, the file is there.
    let mut fault = unsafe { HostFault::from_raw(vmf) };
    // SAFETY: Taken above for a file that converts in place.
    let stable = unsafe { Stable::assume_locked(fault.inode()) };

    let mapped = fault.around(&stable);
    if mapped != 0 {
        return mapped;
    }

    match T::fault(&mut fault, &stable) {
        // Without a page, the evidence belongs to another fault.
        Ok(Served { .. }) => fault
            .finish()
            .unwrap_or(bindings::vm_fault_reason_VM_FAULT_SIGBUS),
        // RETRY would mean that mmap_lock was dropped. This value repeats the access.
        Err(e) if e == EAGAIN => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
        Err(e) if e == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
        Err(e) if e == EHWPOISON => bindings::vm_fault_reason_VM_FAULT_HWPOISON,
        Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
    }
}
