// SPDX-License-Identifier: GPL-2.0

//! Guest faults.

use crate::platform;
use gmem_sys::{
    fs::block,
    kvm::fault::{
        GuestFault,
        GuestPage, //
    },
    trace, //
};
use gmem_types::visibility::Visibility;
use kernel::prelude::*;

/// Gives a guest a page.
///
/// For a page that is in use, and that no platform has to be given, no lock is taken. For other
/// pages the attributes do not change from the check whether the page is private until it is zeroed
/// and given to the platform. So the platform gets no page that a conversion has just made shared.
/// `mmu_invalidate_seq` detects a conversion between here and the mapping.
///
/// # Errors
///
/// `EHWPOISON`, `ENOMEM`, `EINTR` if the task is being killed, and what the platform returns.
pub(crate) fn get_pfn(fault: GuestFault<'_>) -> Result<GuestPage<'_>> {
    let (vm, inode, gfn, at) = (fault.vm(), fault.inode(), fault.gfn(), fault.at());
    let on = fault.platform();

    if let Some(page) = in_use(&fault) {
        trace::guest_fault(move || {
            let is_private = inode.visibility(at) == Visibility::Private;
            let offset = inode.offset_of(at);
            (inode.number(), offset, gfn.get(), is_private, false)
        });
        return Ok(page);
    }

    inode.stable(|stable| {
        let zeroed = fault.with_private_block(stable, |first, block| {
            platform::make_block_private(on, vm, first, inode, block);
            block.is_first_use(at)
        });
        fault.serve(stable, |folio| {
            platform::make_private(on, vm, gfn, stable, folio)?;
            let first_use = folio.is_first_use() || zeroed == Some(true);
            let of = stable.visibility(at);
            trace::guest_fault(move || {
                let is_private = of == Visibility::Private;
                let offset = inode.offset_of(at);
                (inode.number(), offset, gfn.get(), is_private, first_use)
            });
            Ok(platform::max_mapping_order(on, of, block::ORDER))
        })
    })
}

/// Returns the page of the fault if it is in use and no platform has to be given it. Any context.
#[inline]
pub(crate) fn in_use<'a>(fault: &GuestFault<'a>) -> Option<GuestPage<'a>> {
    // Of which kind the page is makes no difference where no platform has to be given it.
    let of = Visibility::Shared;
    fault.serve_in_use(platform::max_mapping_order(
        fault.platform(),
        of,
        block::ORDER,
    ))
}

/// Allocates the pages that KVM_MAP_MEMORY wants, from the page of the fault on, in one piece if
/// they may be mapped large. Returns whether a fault may map large what is in use there.
pub(crate) fn allocate_block(fault: &GuestFault<'_>) -> bool {
    let of = fault.inode().visibility(fault.at());
    platform::max_mapping_order(fault.platform(), of, block::ORDER) == block::ORDER
        && fault.allocate_block()
}
