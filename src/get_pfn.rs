// SPDX-License-Identifier: GPL-2.0

//! Guest faults.

use crate::vendor;
use gmem_policy::request::Visibility;
use gmem_sys::{
    kvm::fault::{
        GuestFault,
        GuestPage, //
    },
    trace, //
};
use kernel::prelude::*;

/// Gives a guest a page.
///
/// The attributes are held from the question whether the page is private through zeroing and
/// handing it to the platform, so that no page becomes the platform's that a conversion has just
/// made shared. What happens between here and the mapping is checked by `mmu_invalidate_seq`.
///
/// # Errors
///
/// `EHWPOISON`, `ENOMEM`, `EINTR` if the task is being killed, and what the platform returns.
pub(crate) fn get_pfn(fault: GuestFault<'_>) -> Result<GuestPage<'_>> {
    let (vm, inode, gfn, at) = (fault.vm(), fault.inode(), fault.gfn(), fault.at());

    inode.stable(|stable| {
        let folio = fault.folio(stable)?;
        vendor::make_private(vm, gfn, stable, &folio)?;
        let first_use = folio.is_first_use();
        trace::guest_fault(move || {
            let is_private = stable.visibility(at) == Visibility::Private;
            let offset = trace::offset(inode, at);
            (trace::ino(inode), offset, gfn.get(), is_private, first_use)
        });
        let max_order = vendor::max_mapping_order(vm, at, stable, folio.order());
        fault.serve(folio, max_order)
    })
}
