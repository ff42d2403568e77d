// SPDX-License-Identifier: GPL-2.0

//! The operations tables: which functions the VFS and memory management call for files, inodes and
//! the file system. [`export`](crate::export) fills them in.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::bindings;
use core::{
    cell::UnsafeCell,
    ptr,
    sync::atomic::{
        AtomicPtr,
        Ordering, //
    }, //
};
use kernel::prelude::*;

/// The operations tables of an implementation. They are never written.
pub struct Tables {
    pub(crate) runs_sequence: bindings::seq_operations,
    pub(crate) vm: bindings::vm_operations_struct,
    pub(crate) mapping: bindings::address_space_operations,
    pub(crate) inode: bindings::inode_operations,
    pub(crate) superblock: bindings::super_operations,
    pub(crate) state: &'static State,
}

// SAFETY: The tables are not written, and what they point to is static.
unsafe impl Sync for Tables {}

/// The tables in use: those of all files, of their inodes and of the file system, whatever
/// [`GuestMemfd::tables`](crate::guest_memfd::GuestMemfd::tables) may return later.
static IN_USE: AtomicPtr<Tables> = AtomicPtr::new(ptr::null_mut());

/// The tables in use.
///
/// # Errors
///
/// `ENODEV` before KVM is loaded.
pub(crate) fn tables() -> Result<&'static Tables> {
    // SAFETY: It is NULL, or what init() got, which is static.
    unsafe { IN_USE.load(Ordering::Acquire).as_ref() }.ok_or(ENODEV)
}

/// The state of an implementation that is written.
pub struct State {
    /// Its owner is written when a vendor's module is loaded, as in C. From then on files keep that
    /// module loaded: their VM runs its code, but does not keep it by itself. So the table can be
    /// neither constant nor read-only after the earlier initialisation of this module.
    pub(crate) file: UnsafeCell<bindings::file_operations>,
    /// As `file`.
    pub(crate) runs: UnsafeCell<bindings::file_operations>,
    /// The VFS links it into lists, as it does with every file system's.
    pub(crate) file_system: UnsafeCell<bindings::file_system_type>,
    pub(crate) cache: AtomicPtr<bindings::kmem_cache>,
    pub(crate) mount: AtomicPtr<bindings::vfsmount>,
}

// SAFETY: What is in cells is written before KVM can be used, or by the VFS under its own locks.
unsafe impl Sync for State {}

impl Tables {
    /// From here on files keep `module` loaded, and the file system uses these tables.
    ///
    /// # Safety
    ///
    /// Nobody uses tables yet.
    pub(crate) unsafe fn take_into_use(&'static self, module: *mut bindings::module) {
        // SAFETY: By the contract of this function.
        unsafe {
            (*self.state.file.get()).owner = module;
            (*self.state.runs.get()).owner = module;
        }
        IN_USE.store(ptr::from_ref(self).cast_mut(), Ordering::Release);
    }

    pub(crate) fn file_operations(&self) -> *const bindings::file_operations {
        self.state.file.get()
    }

    pub(crate) fn runs_operations(&self) -> *const bindings::file_operations {
        self.state.runs.get()
    }

    pub(crate) fn runs_sequence(&self) -> *const bindings::seq_operations {
        &self.runs_sequence
    }

    pub(crate) fn vm_operations(&self) -> *const bindings::vm_operations_struct {
        &self.vm
    }

    pub(crate) fn address_space_operations(&self) -> *const bindings::address_space_operations {
        &self.mapping
    }

    pub(crate) fn inode_operations(&self) -> *const bindings::inode_operations {
        &self.inode
    }

    pub(crate) fn super_operations(&self) -> *const bindings::super_operations {
        &self.superblock
    }

    pub(crate) fn file_system(&self) -> *mut bindings::file_system_type {
        self.state.file_system.get()
    }

    pub(crate) fn cache(&self) -> *mut bindings::kmem_cache {
        self.state.cache.load(Ordering::Relaxed)
    }

    pub(crate) fn set_cache(&self, cache: *mut bindings::kmem_cache) {
        self.state.cache.store(cache, Ordering::Relaxed);
    }

    pub(crate) fn mount(&self) -> *mut bindings::vfsmount {
        self.state.mount.load(Ordering::Relaxed)
    }

    pub(crate) fn set_mount(&self, mount: *mut bindings::vfsmount) {
        self.state.mount.store(mount, Ordering::Relaxed);
    }

    pub(crate) fn super_block(&self) -> *mut bindings::super_block {
        // SAFETY: Files are created while the file system is mounted only.
        unsafe { bindings::gmem_mount_sb(self.mount()) }
    }
}
