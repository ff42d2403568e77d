// SPDX-License-Identifier: GPL-2.0

//! KVM's accesses to private pages when it emulates an instruction that lies in, or works on, such
//! a page.
//!
//! This is for software-protected VMs only. On all other platforms, hardware or a hypervisor also
//! protects the guest's memory from KVM.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h),
//! `kvm_gmem_emulate_access()`

use crate::{
    fs::page_cache::PrivatePage,
    kvm::{
        fault::GuestFault,
        memslot::Memslot,
        vm::{
            Gfn,
            Vm, //
        }, //
    }, //
};
use gmem_types::platform::Platform;
use kernel::prelude::*;

/// Calls `access` with the page at `gfn`, which stays private until it returns. Called inside SRCU;
/// sleeps.
///
/// # Errors
///
/// `EFAULT` if the platform keeps private memory from KVM, or the slot has no such page or no file
/// any more; `EAGAIN` if the page is shared; those of [`GuestFault::folio`]; `EINTR` if the task is
/// being killed; those of `access`.
pub(crate) fn access<R>(
    vm: &Vm,
    slot: &Memslot,
    gfn: Gfn,
    access: impl FnOnce(&PrivatePage<'_>) -> Result<R>,
) -> Result<R> {
    let (file, at) = slot.find(gfn)?;
    if file.platform().is_none_or(Platform::owns_pages) {
        return Err(EFAULT);
    }
    let fault = GuestFault::new(vm, &file, gfn, at);

    fault.inode().stable(|stable| {
        let folio = fault.folio(stable)?;
        access(&folio.as_private(stable).ok_or(EAGAIN)?)
    })
}
