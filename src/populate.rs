// SPDX-License-Identifier: GPL-2.0

//! Filling private pages before launch.

use crate::platform;
use gmem_sys::{
    kvm::populate::Populate,
    task::signal_pending,
    trace, //
};
use kernel::prelude::*;

/// Fills pages, and returns how many were filled.
///
/// # Errors
///
/// That of the first page, if no page was filled.
pub(crate) fn populate(populate: &Populate<'_>) -> Result<u64> {
    let result = fill(populate);
    trace::populate(|| {
        let result = match result {
            // CAST: At most a long's worth of pages was asked for.
            Ok(done) => done as isize,
            Err(error) => error.to_errno() as isize,
        };
        (populate.start().get(), populate.wanted(), result)
    });
    result
}

fn fill(populate: &Populate<'_>) -> Result<u64> {
    let npages = populate.pages()?;

    for done in 0..npages {
        let filled = if signal_pending() {
            Err(EINTR)
        } else {
            one(populate, done)
        };
        match filled {
            Ok(()) => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => return Ok(done),
        }
    }
    Ok(npages)
}

fn one(populate: &Populate<'_>, n: u64) -> Result {
    // Before the lock: faulting the source in may need it.
    let source = populate.pin_source(n)?;
    let file = populate.file(source.gfn())?;
    let to = platform::populate(&file, source.gfn())?;

    file.inode()
        .locked_killable(|guard| populate.fill(guard, source, to))
}
