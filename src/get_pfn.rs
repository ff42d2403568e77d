// SPDX-License-Identifier: GPL-2.0

//! Guest faults.

use crate::vendor;
use gmem_policy::{
    range::PageIndex,
    request::Visibility, //
};
use gmem_sys::{
    export::GuestPage,
    fs::file_ops::GmemFile,
    kvm::vm::{
        Gfn,
        Vm, //
    },
    trace, //
};
use kernel::prelude::*;

/// Gives a guest the page at `at`, which shows as `gfn`.
///
/// The attributes are held from the question whether the page is private through zeroing and
/// handing it to the platform, so that no page becomes the platform's that a conversion has just
/// made shared. What happens between here and the mapping is checked by `mmu_invalidate_seq`.
///
/// # Errors
///
/// `EHWPOISON`, `ENOMEM`, and what the platform returns.
pub(crate) fn get_pfn(vm: &Vm, file: &GmemFile, gfn: Gfn, at: PageIndex) -> Result<GuestPage> {
    let inode = file.inode();
    let stable = inode.stable();
    let folio = inode.folio(at)?;

    if folio.is_poisoned() {
        return Err(EHWPOISON);
    }
    let first_use = folio.prepare();
    vendor::make_private(vm, gfn, at, &stable, &folio)?;
    let attributes = &stable;
    trace::guest_fault(move || {
        let is_private = attributes.visibility(at) == Visibility::Private;
        let offset = trace::offset(inode, at);
        (trace::ino(inode), offset, gfn.get(), is_private, first_use)
    });
    Ok(GuestPage {
        max_order: vendor::max_mapping_order(vm, at, &stable, folio.order()),
        page: folio.into_page(),
    })
}
