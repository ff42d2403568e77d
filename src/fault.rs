// SPDX-License-Identifier: GPL-2.0

//! Host faults, and memory that fails.

use crate::bind::kinds;
use gmem_policy::range::PageRange;
use gmem_sys::{
    fs::address_space::{
        Bindings,
        BindingsGuard, //
    },
    kvm::mmu::InvalidateSpan,
    mm::fault::{
        HostFault,
        Served, //
    }, //
};
use kernel::prelude::*;

/// Gives the host a shared page.
///
/// The attributes are held from the check until the folio is locked. A conversion that comes then
/// finds the folio locked, and waits for the page table entry that it is going to take away.
///
/// # Errors
///
/// Those that become SIGBUS: a private page, the end of the file; and `ENOMEM`.
pub(crate) fn fault(fault: HostFault<'_>) -> Result<Served> {
    let inode = fault.inode();
    let stable = inode.stable();
    let permit = fault.permit(&stable)?;
    let folio = inode.folio(permit.at())?;

    fault.serve(permit, folio)
}

/// Takes failed memory out of the guests' page tables.
///
/// The folio is locked, so the invalidate lock must not be waited for: its holder may be waiting
/// for the folio. The bindings mutex keeps the slots in place instead. A guest that is being given
/// the page at this moment is stopped by the invalidation, and finds it poisoned when it tries
/// again.
pub(crate) fn memory_failure(bindings: &BindingsGuard<'_>, range: &PageRange) {
    let span = InvalidateSpan::begin(bindings, *range);
    // Of a VM that dies of this nothing is touched afterwards.
    let _ = span.zap(kinds(bindings.inode()));
}
