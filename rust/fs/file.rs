// SPDX-License-Identifier: GPL-2.0

//! guest_memfd files, and the file that a slot is bound to.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    fs::{
        file_data::FileData,
        inode::GmemInode,
        tables::tables, //
    },
    kvm::{
        memslot::{
            Binding,
            Memslot, //
        },
        vm::{
            Gfn,
            Vm, //
        }, //
    }, //
};
use core::{
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    }, //
};
use gmem_types::{
    platform::Platform,
    range::PageIndex, //
};
use kernel::{
    prelude::*,
    sync::rcu,
    types::Opaque, //
};

/// An open guest_memfd: one VM's view of an inode.
///
/// # Invariants
///
/// A reference to it is one to a file with our operations that has at least one user, or is being
/// released; its private data is a [`FileData`].
#[repr(transparent)]
pub struct GmemFile(Opaque<bindings::file>);

impl GmemFile {
    /// Takes a pointer from C.
    ///
    /// # Safety
    ///
    /// `file` must be one of ours, and have a reference for as long as `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(file: *mut bindings::file) -> &'a Self {
        // SAFETY: By the contract of this function; the type is transparent.
        unsafe { &*file.cast() }
    }

    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::file {
        self.0.get()
    }

    /// The inode.
    #[inline]
    pub fn inode(&self) -> &GmemInode {
        // SAFETY: By the type's invariants.
        unsafe { GmemInode::of_file(self.as_raw()) }
    }

    #[inline]
    pub(crate) fn data(&self) -> &FileData {
        // SAFETY: By the type's invariants.
        unsafe { &*(*self.as_raw()).private_data.cast() }
    }

    /// The VM.
    #[inline]
    pub fn vm(&self) -> &Vm {
        self.data().vm()
    }

    /// The platform that the VM is on, if its memory can be converted in place.
    #[inline]
    pub fn platform(&self) -> Option<Platform> {
        self.data().platform()
    }

    /// Calls `f` for each slot that is bound to the file, lowest page first.
    ///
    /// Takes the bindings mutex, with which `f` is called; sleeps.
    pub fn for_each_binding(&self, mut f: impl FnMut(Binding)) {
        let bindings = self.inode().lock_bindings();
        let whole = self.inode().geometry().whole();

        self.data().for_each_slot(&bindings, &whole, |slot| {
            if let Some(binding) = slot.binding() {
                f(binding);
            }
        });
    }

    /// Updates the file's times after a change of its contents, as fallocate() does.
    #[inline]
    pub fn modified(&self) {
        // SAFETY: By the type's invariants. Nothing can be done about an error, nor by the C file.
        unsafe { bindings::file_modified(self.as_raw()) };
    }
}

/// A file with a reference to it; dropping it puts.
pub struct ActiveFile(NonNull<bindings::file>);

impl ActiveFile {
    /// Takes over a reference. [`None`] for NULL.
    ///
    /// # Safety
    ///
    /// `file` is NULL or one of ours, and the caller gives up a reference.
    #[inline]
    pub(crate) unsafe fn from_raw(file: *mut bindings::file) -> Option<Self> {
        NonNull::new(file).map(Self)
    }

    /// The open file with this descriptor, if it is a guest_memfd.
    ///
    /// # Errors
    ///
    /// `EBADF` if there is none, `EINVAL` if it is another kind of file.
    pub(crate) fn from_fd(fd: u32) -> Result<Self> {
        let tables = tables()?;
        // SAFETY: Any number can be passed.
        let file = NonNull::new(unsafe { bindings::fget(fd) }).ok_or(EBADF)?;
        // SAFETY: The file is valid and has a reference.
        if !ptr::eq(unsafe { file.as_ref() }.f_op, tables.file_operations()) {
            // SAFETY: fget() took it.
            unsafe { bindings::fput(file.as_ptr()) };
            return Err(EINVAL);
        }
        Ok(Self(file))
    }

    /// Gives the reference to the caller.
    #[inline]
    pub(crate) fn into_raw(self) -> *mut bindings::file {
        core::mem::ManuallyDrop::new(self).0.as_ptr()
    }
}

impl Deref for ActiveFile {
    type Target = GmemFile;

    #[inline]
    fn deref(&self) -> &GmemFile {
        // SAFETY: One of ours, and the reference keeps it.
        unsafe { GmemFile::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for ActiveFile {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::fput(self.0.as_ptr()) }
    }
}

/// The file that a slot is bound to.
impl Memslot {
    /// The file that the slot is bound to, with a reference; [`None`] once it is being closed.
    #[inline]
    pub fn active_file(&self) -> Option<ActiveFile> {
        // SAFETY: By the type's invariants; get_file_active() copes with a file that goes away.
        let file = unsafe { bindings::gmem_slot_get_file(self.as_raw()) };
        // SAFETY: A slot's file is a guest_memfd of ours, and the reference is handed over.
        unsafe { ActiveFile::from_raw(file) }
    }

    /// The file that the slot is bound to, with a reference, and where in it `gfn` lies.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the slot does not have the gfn, or no longer has a file. `EIO` if the file does
    /// not know the slot: the slot would not be invalidated when the page is converted or freed.
    #[inline]
    pub(crate) fn find(&self, gfn: Gfn) -> Result<(ActiveFile, PageIndex)> {
        let at = self.index_of(gfn).ok_or(EFAULT)?;
        let file = self.active_file().ok_or(EFAULT)?;
        if !file.data().is_bound(at, self) {
            return Err(EIO);
        }
        Ok((file, at))
    }

    /// Calls `f` with the inode of the file that the slot is bound to; [`None`] once that is
    /// closed. Any context; `f` is called inside RCU and must not sleep.
    #[inline]
    pub(crate) fn with_inode<R>(&self, f: impl FnOnce(&GmemInode, &rcu::Guard) -> R) -> Option<R> {
        let rcu = rcu::read_lock();
        // SAFETY: By the type's invariants, and inside RCU.
        let inode = unsafe { bindings::gmem_slot_inode_rcu(self.as_raw()) };
        if inode.is_null() {
            return None;
        }
        // SAFETY: The inode of a slot's file is one of ours, and inodes are freed behind RCU.
        Some(f(unsafe { &*GmemInode::from_vfs(inode) }, &rcu))
    }
}
