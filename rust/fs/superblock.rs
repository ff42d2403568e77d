// SPDX-License-Identifier: GPL-2.0

//! The pseudo file system that guest_memfd inodes live in, and their slab cache.
//!
//! C headers: [`include/linux/pseudo_fs.h`](srctree/include/linux/pseudo_fs.h),
//! [`include/linux/slab.h`](srctree/include/linux/slab.h)

use crate::{
    bindings,
    fs::{
        inode::GmemInode,
        tables::{
            tables,
            Tables, //
        }, //
    }, //
};
use core::ptr;
use kernel::{
    error::{
        from_err_ptr,
        from_result, //
    },
    prelude::*, //
};

/// Initialises what stays initialised while the slab keeps an object, free or not.
///
/// # Safety
///
/// To be called by the slab allocator only.
unsafe extern "C" fn init_once(this: *mut c_void) {
    // SAFETY: The cache's objects are `GmemInode`s.
    unsafe { bindings::inode_init_once(GmemInode::vfs_of(this.cast())) }
}

/// The `alloc_inode` operation.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn alloc(sb: *mut bindings::super_block) -> *mut bindings::inode {
    let Ok(tables) = tables() else {
        return ptr::null_mut();
    };
    // SAFETY: The cache exists while the file system is mounted; its constructor has run.
    let this: *mut GmemInode = unsafe { bindings::gmem_alloc_inode(sb, tables.cache()) }.cast();
    if this.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: Just allocated.
    unsafe { GmemInode::init(this) };
    GmemInode::vfs_of(this)
}

/// The `destroy_inode` operation; in the context of the last user, who may sleep.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn destroy(inode: *mut bindings::inode) {
    // SAFETY: The VFS is done with the inode, which is one of ours.
    unsafe { GmemInode::tear_down(GmemInode::from_vfs(inode)) }
}

/// The `free_inode` operation; runs when RCU readers are done.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn free(inode: *mut bindings::inode) {
    // There are no inodes before there are tables.
    if let Ok(tables) = tables() {
        // SAFETY: The object came from this cache, and kvm_gmem_exit() waits for RCU before it goes.
        unsafe { bindings::kmem_cache_free(tables.cache(), GmemInode::from_vfs(inode).cast()) }
    }
}

/// The `init_fs_context` operation.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn init_fs_context(fc: *mut bindings::fs_context) -> c_int {
    from_result(|| {
        let tables = tables()?;
        // SAFETY: `fc` is valid; the super operations are static.
        let done = unsafe {
            bindings::gmem_init_pseudo(
                fc,
                bindings::GUEST_MEMFD_MAGIC as usize,
                tables.super_operations(),
            )
        };
        if done {
            Ok(0)
        } else {
            Err(ENOMEM)
        }
    })
}

/// Makes the slab cache and mounts the file system.
///
/// # Errors
///
/// `ENOMEM`, or what mounting returns. Everything is undone then.
///
/// # Safety
///
/// To be called once before anything else of `tables` is used, or again after [`unmount`].
pub(crate) unsafe fn mount(tables: &'static Tables) -> Result {
    // CAST: The size of an inode fits.
    // SAFETY: The constructor fits the objects.
    let cache = unsafe {
        bindings::gmem_inode_cache_create(size_of::<GmemInode>() as u32, Some(init_once))
    };
    if cache.is_null() {
        return Err(ENOMEM);
    }
    tables.set_cache(cache);

    // SAFETY: The file system type is static and registered nowhere.
    match from_err_ptr(unsafe { bindings::kern_mount(tables.file_system()) }) {
        Ok(mount) => {
            // SAFETY: The mount is valid and ours.
            unsafe { bindings::gmem_mount_noexec(mount) };
            tables.set_mount(mount);
            Ok(())
        }
        Err(e) => {
            // SAFETY: The cache has no objects.
            unsafe { bindings::kmem_cache_destroy(cache) };
            tables.set_cache(ptr::null_mut());
            Err(e)
        }
    }
}

/// Undoes [`mount`].
///
/// # Safety
///
/// No files may exist any more.
pub(crate) unsafe fn unmount(tables: &'static Tables) {
    // SAFETY: By the contract of this function. Inodes are freed behind RCU.
    unsafe {
        bindings::kern_unmount(tables.mount());
        tables.set_mount(ptr::null_mut());
        bindings::rcu_barrier();
        bindings::kmem_cache_destroy(tables.cache());
        tables.set_cache(ptr::null_mut());
    }
}
