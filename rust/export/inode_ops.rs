// SPDX-License-Identifier: GPL-2.0

//! The operations of inodes and of their mappings.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    fs::inode::{
        clip,
        GmemInode,
        PAGE, //
    },
    guest_memfd::GuestMemfd,
    kvm::{
        migrate::migrate,
        mmu::InvalidateSpan,
        platform,
        stand_in, //
    },
    mm::folio::Frame, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_result,
    prelude::*, //
};

/// # Safety
///
/// To be called by memory management only: with both folios locked, `src` in the mapping and not
/// mapped by the host, and `dst` without other users and of the same size. Memory management has one
/// reference to `src`.
pub(super) unsafe extern "C" fn migrate_folio<T: GuestMemfd>(
    mapping: *mut bindings::address_space,
    dst: *mut bindings::folio,
    src: *mut bindings::folio,
    mode: bindings::migrate_mode,
) -> c_int {
    // SAFETY: A locked folio is in the mapping, which is one of ours.
    let inode = unsafe { GmemInode::of_mapping(mapping) };

    from_result(|| {
        if !inode.is_migratable() {
            // SAFETY: Only warns.
            unsafe { bindings::gmem_warn_migrate() };
            return Err(EINVAL);
        }
        let src = NonNull::new(src).ok_or(EINVAL)?;
        let dst = NonNull::new(dst).ok_or(EINVAL)?;
        let may_wait = mode != bindings::migrate_mode_MIGRATE_ASYNC;
        // SAFETY: By the contract of this function.
        unsafe { migrate(inode, src, dst, may_wait, T::migrate) }?;
        Ok(0)
    })
}

/// # Safety
///
/// To be called by memory failure only, with the folio locked.
pub(super) unsafe extern "C" fn error_folio(
    mapping: *mut bindings::address_space,
    folio: *mut bindings::folio,
) -> c_int {
    // SAFETY: The folio is locked and in the mapping, which is one of ours.
    let (inode, start, len) = unsafe {
        (
            GmemInode::of_mapping(mapping),
            bindings::gmem_folio_index(folio) as u64,
            bindings::gmem_folio_nr_pages(folio) as u64,
        )
    };

    // Memory failure splits folios. If it cannot, as somebody has a reference, it keeps none itself.
    let is_split = len == 1;

    if let Some(range) = clip(inode, start, start.saturating_add(len)) {
        // The folio is locked, so the invalidate lock must not be waited for: its holder may be
        // waiting for the folio. The bindings mutex keeps the slots in place instead.
        let bindings = inode.lock_bindings();
        bindings.take_from_guests(&range);
        // Only a hypervisor can take these pages from a guest.
        if InvalidateSpan::begin(&bindings, range).retire() {
            if let Some(folio) = NonNull::new(folio) {
                // SAFETY: The folio is valid, and locked by the caller.
                unsafe { Frame::from_raw(folio) }.retire();
            }
        }
        drop(bindings);
        if !is_split {
            // Of a folio that is split nothing is mapped. The fault core maps all of the folio at once,
            // and is told of single pages from here on.
            inode.unmap(&range);
        }
    }
    if let Some(folio) = NonNull::new(folio).filter(|_| is_split) {
        // SAFETY: As above.
        unsafe { Frame::from_raw(folio) }.mark_failed();
    }
    // The folio stays: user space decides what to do about it, and is notified by get_pfn().
    bindings::mf_result_MF_DELAYED as c_int
}

/// # Safety
///
/// To be called by the page cache only.
pub(super) unsafe extern "C" fn free_folio<T: GuestMemfd>(folio: *mut bindings::folio) {
    // SAFETY: The folio is on its way out of the page cache, still valid, and has no other user.
    let frame = unsafe { Frame::from_raw(NonNull::new_unchecked(folio)) };

    // Without an RMP, a page without a record has no owner.
    if frame.is_known() || platform::has_rmp() {
        // SAFETY: As above.
        unsafe { take_back::<T>(folio) };
    }
}

/// Takes a page that is freed back from its owner. Out of line, so that pages that no platform can
/// have do not pay for it.
///
/// # Safety
///
/// As for [`free_folio`].
#[inline(never)]
unsafe fn take_back<T: GuestMemfd>(folio: *mut bindings::folio) {
    // SAFETY: By the contract of this function.
    let frame = unsafe { Frame::from_raw(NonNull::new_unchecked(folio)) };

    if !frame.is_known() {
        // SAFETY: As above.
        unsafe { bindings::gmem_reclaim(folio) };
    } else if !frame.is_leaked() {
        T::reclaim(&frame);
    }
    // The next user of the page could not access it.
    if platform::is_assigned(&frame) {
        frame.leak();
    }
    for frame in frame.all() {
        stand_in::all().for_each(|other| other.freed(&frame));
    }
    frame.clear();
}

/// # Safety
///
/// To be called by the VFS only.
pub(super) unsafe extern "C" fn setattr(
    _idmap: *mut bindings::mnt_idmap,
    _dentry: *mut bindings::dentry,
    _attr: *mut bindings::iattr,
) -> c_int {
    EINVAL.to_errno()
}

/// Reports the VFS's data of the file, and how much memory it has.
///
/// # Safety
///
/// To be called by the VFS only.
pub(super) unsafe extern "C" fn getattr(
    idmap: *mut bindings::mnt_idmap,
    path: *const bindings::path,
    stat: *mut bindings::kstat,
    request: u32,
    _flags: c_uint,
) -> c_int {
    /// The unit of `st_blocks`.
    const SECTOR: u64 = 512;

    // SAFETY: The path is that of a file of ours, and `stat` is valid for writes.
    unsafe {
        let vfs = (*(*path).dentry).d_inode;
        let inode = &*GmemInode::from_vfs(vfs);

        bindings::generic_fillattr(idmap, request, vfs, stat);
        (*stat).blocks = inode.allocated() * (PAGE.bytes() / SECTOR);
    }
    0
}
