// SPDX-License-Identifier: GPL-2.0

//! Which files an inode has, and which slots are bound to them.
//!
//! Both change with the invalidate lock held exclusively *and* the bindings mutex held.

use crate::{
    fs::{
        address_space::{
            Exclusive,
            InvalidateGuard,
            Shared, //
        },
        file_data::FileData,
        inode::GmemInode, //
    },
    kvm::memslot::Memslot, //
};
use core::ptr::{
    self,
    NonNull, //
};
use gmem_types::range::{
    Geometry,
    PageRange, //
};
use kernel::{
    prelude::*,
    sync::MutexGuard, //
};

/// Evidence that no slot is bound to, and no file added to or removed from, an inode.
///
/// Changing them takes the invalidate lock exclusively *and* the bindings mutex. So holding either
/// of the two is enough, the invalidate lock in either mode.
///
/// # Safety
///
/// Implementors hold one of the two locks of the inode they return.
pub(crate) unsafe trait Bindings {
    /// The inode.
    fn inode(&self) -> &GmemInode;

    /// Its geometry.
    #[inline]
    fn geometry(&self) -> Geometry {
        self.inode().geometry()
    }
}

// SAFETY: The guard is the held invalidate lock.
unsafe impl Bindings for InvalidateGuard<'_, Exclusive> {
    #[inline]
    fn inode(&self) -> &GmemInode {
        InvalidateGuard::inode(self)
    }
}

// SAFETY: As above.
unsafe impl Bindings for InvalidateGuard<'_, Shared> {
    #[inline]
    fn inode(&self) -> &GmemInode {
        InvalidateGuard::inode(self)
    }
}

/// The held bindings mutex; for memory failure, which must not wait for the invalidate lock.
pub(crate) struct BindingsGuard<'a> {
    inode: &'a GmemInode,
    _mutex: MutexGuard<'a, ()>,
}

impl<'a> BindingsGuard<'a> {
    #[inline]
    pub(crate) fn new(inode: &'a GmemInode, mutex: MutexGuard<'a, ()>) -> Self {
        Self {
            inode,
            _mutex: mutex,
        }
    }
}

// SAFETY: The guard is the held bindings mutex.
unsafe impl Bindings for BindingsGuard<'_> {
    #[inline]
    fn inode(&self) -> &GmemInode {
        self.inode
    }
}

impl FileData {
    /// Calls `f` for each bound slot that shows a page of `range`, lowest first.
    pub(crate) fn for_each_slot<'a>(
        &'a self,
        _stable: &'a dyn Bindings,
        range: &PageRange,
        mut f: impl FnMut(&'a Memslot),
    ) {
        let mut at = range.start();
        while let Some(slot) = self.next(&mut at, range) {
            f(slot);
        }
    }

    /// Whether a slot is bound that shows a page of `range`.
    #[inline]
    pub(crate) fn has_slot(&self, _stable: &dyn Bindings, range: &PageRange) -> bool {
        let mut at = range.start();
        self.next(&mut at, range).is_some()
    }

    /// Binds `slot` to its pages.
    ///
    /// # Errors
    ///
    /// `EEXIST` if one of them is bound already, `ENOMEM`.
    pub(crate) fn bind(&self, stable: &dyn Bindings, slot: &Memslot) -> Result {
        let range = slot.file_range().ok_or(EINVAL)?;

        if self.has_slot(stable, &range) {
            return Err(EEXIST);
        }
        let bound = self.store(&range, slot.as_raw());
        if bound.is_err() {
            self.unbind(stable, slot);
        }
        bound
    }

    /// Unbinds `slot`.
    pub(crate) fn unbind(&self, _stable: &dyn Bindings, slot: &Memslot) {
        if let Some(range) = slot.file_range() {
            // Storing nothing over an existing range needs no memory and cannot fail.
            let _ = self.store(&range, ptr::null_mut());
        }
    }
}

impl GmemInode {
    /// Takes the bindings mutex alone; sleeps. Allowed with a folio locked.
    #[inline]
    pub(crate) fn lock_bindings(&self) -> BindingsGuard<'_> {
        BindingsGuard::new(self, self.bindings_lock.lock())
    }

    /// Takes both locks that changing bindings needs. The order is that of the lock hierarchy.
    #[inline]
    pub(crate) fn lock_to_bind(&self) -> (InvalidateGuard<'_, Exclusive>, BindingsGuard<'_>) {
        let guard = self.lock();
        (guard, self.lock_bindings())
    }

    /// As [`lock_to_bind`](Self::lock_to_bind), for callers that can fail.
    ///
    /// # Errors
    ///
    /// `EINTR` if a signal that kills the task comes first.
    #[inline]
    pub(crate) fn lock_to_bind_killable(
        &self,
    ) -> Result<(InvalidateGuard<'_, Exclusive>, BindingsGuard<'_>)> {
        let guard = InvalidateGuard::new_killable(self)?;
        Ok((guard, self.lock_bindings()))
    }

    /// The files that show the inode to VMs.
    #[inline]
    pub(crate) fn files<'a>(
        &'a self,
        _stable: &'a dyn Bindings,
    ) -> impl Iterator<Item = &'a FileData> {
        // SAFETY: `files` cannot change, and its pointers stay valid, while the bindings are
        // locked (see the type's invariants).
        unsafe { (*self.files.get()).iter().map(|file| file.as_ref()) }
    }

    /// Adds a file.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR` if the task is being killed.
    ///
    /// # Safety
    ///
    /// `file` must be valid until [`remove_file`](Self::remove_file), or until the inode is gone.
    pub(crate) unsafe fn add_file(&self, file: NonNull<FileData>) -> Result {
        let _locks = self.lock_to_bind_killable()?;
        // SAFETY: Both locks are held.
        unsafe { (*self.files.get()).push(file, GFP_KERNEL)? };
        Ok(())
    }

    /// Removes a file.
    pub(crate) fn remove_file(
        &self,
        _invalidate: &InvalidateGuard<'_, Exclusive>,
        _bindings: &BindingsGuard<'_>,
        file: &FileData,
    ) {
        // SAFETY: Both locks are held.
        let files = unsafe { &mut *self.files.get() };
        files.retain(|other| !core::ptr::eq(other.as_ptr(), file));
    }
}
