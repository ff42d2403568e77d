// SPDX-License-Identifier: GPL-2.0

//! Allocating memory ahead of its use, and giving it back.

use gmem_sys::{
    fs::{
        file::GmemFile,
        inode::{
            clip,
            GmemInode, //
        }, //
    },
    task::{
        reschedule,
        signal_pending, //
    },
    uapi::{
        FALLOC_KEEP_SIZE,
        FALLOC_PUNCH_HOLE, //
    }, //
};
use kernel::prelude::*;

/// fallocate().
///
/// # Errors
///
/// `EOPNOTSUPP` for an unknown mode, `EINVAL` for a range that is not page aligned or (allocating)
/// not in the file, `EINTR`, `ENOMEM`; for a hole that has a part of a large folio, also `EAGAIN` if
/// somebody holds the folio.
pub(crate) fn fallocate(file: &GmemFile, mode: i32, offset: u64, len: u64) -> Result {
    let inode = file.inode();
    let page = inode.geometry().page_size();

    // Callers have to set it, as the size of a file never changes.
    if mode & FALLOC_KEEP_SIZE == 0 || mode & !(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE) != 0 {
        return Err(EOPNOTSUPP);
    }
    if !page.is_aligned(offset) || !page.is_aligned(len) {
        return Err(EINVAL);
    }

    if mode & FALLOC_PUNCH_HOLE != 0 {
        punch_hole(inode, offset, len)?;
    } else {
        allocate(file, offset, len)?;
    }
    file.modified();
    Ok(())
}

/// The attributes do not change: the next page at this place is private or shared as before.
fn punch_hole(inode: &GmemInode, offset: u64, len: u64) -> Result {
    let page_size = inode.geometry().page_size().bytes();
    let Some(range) = clip(
        inode,
        offset / page_size,
        offset.saturating_add(len) / page_size,
    ) else {
        return Ok(());
    };
    inode.locked_killable(|guard| {
        guard.free(&range)?;
        Ok(())
    })
}

/// The folios are not marked up to date: they are zeroed at their first use. The whole range is
/// requested at once, so that the memory for a large mapping is allocated in one piece where
/// possible.
fn allocate(file: &GmemFile, offset: u64, len: u64) -> Result {
    let inode = file.inode();
    let range = inode.geometry().range(offset, len).ok_or(EINVAL)?;

    inode.locked_shared(|guard| {
        let mut rest = Some(range);
        while let Some(range) = rest {
            if signal_pending() {
                return Err(EINTR);
            }
            rest = guard.allocate(file.vm(), &range)?;
            reschedule();
        }
        Ok(())
    })
}
