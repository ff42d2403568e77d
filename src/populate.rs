// SPDX-License-Identifier: GPL-2.0

//! Filling private pages before launch.

use crate::vendor;
use gmem_sys::{
    fs::address_space::signal_pending,
    kvm::{
        populate::Populate,
        vm::Gfn, //
    },
    trace, //
};
use kernel::prelude::*;

/// Fills up to `npages` pages from `start` on; returns how many were.
///
/// # Errors
///
/// That of the first page, if not even that one was filled.
pub(crate) fn populate(populate: &Populate<'_>, start: Gfn, npages: u64) -> Result<u64> {
    let result = fill(populate, start, npages);
    trace::populate(|| {
        let result = match result {
            // CAST: At most a long's worth of pages was asked for.
            Ok(done) => done as isize,
            Err(error) => error.to_errno() as isize,
        };
        (start.get(), npages, result)
    });
    result
}

fn fill(populate: &Populate<'_>, start: Gfn, npages: u64) -> Result<u64> {
    let slot = populate.slot(start).ok_or(EINVAL)?;
    let npages = populate.pages_in(slot, start, npages);

    for done in 0..npages {
        let filled = if signal_pending() {
            Err(EINTR)
        } else {
            one(populate, Gfn::new(start.get() + done), done)
        };
        match filled {
            Ok(()) => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => return Ok(done),
        }
    }
    Ok(npages)
}

fn one(populate: &Populate<'_>, gfn: Gfn, n: u64) -> Result {
    let slot = populate.slot(gfn).ok_or(EINVAL)?;
    let at = slot.index_of(gfn).ok_or(EINVAL)?;
    let file = slot.active_file().ok_or(EFAULT)?;
    // Before the lock: faulting the source in may need it.
    let source = populate.pin_source(n)?;
    let guard = file.inode().lock();
    let folio = file.inode().folio(at)?;

    if folio.is_poisoned() {
        return Err(EHWPOISON);
    }
    let to = vendor::populate(populate.vm(), file.inode(), gfn)?;

    populate.fill(&guard, gfn, folio, &source, to)
}
