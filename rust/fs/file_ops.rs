// SPDX-License-Identifier: GPL-2.0

//! guest_memfd files and the operations of theirs that the VFS calls.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    export::{
        tables,
        GuestMemfd, //
    },
    fs::{
        debugfs::RunsFile,
        inode::{
            GmemInode,
            Traits, //
        }, //
    },
    ioctl::UserPointer,
    kvm::{
        conversion::Done,
        memslot::{
            Binding,
            FileData, //
        },
        platform,
        vm::Vm, //
    }, //
};
use core::{
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    }, //
};
use gmem_policy::request::{
    GET_MEMORY_ATTRIBUTES2,
    SET_MEMORY_ATTRIBUTES2, //
};
use gmem_types::platform::Platform;
use kernel::{
    error::{
        from_err_ptr,
        from_result, //
    },
    fs::{
        file::FileDescriptorReservation,
        File, //
    },
    prelude::*,
    seq_file::SeqFile,
    sync::aref::ARef,
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
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

    /// Says that the file's contents changed, as fallocate() does.
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
        // SAFETY: Any number can be asked for.
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

/// Makes a file on a new inode for `vm`, and a descriptor for it in the calling process.
///
/// # Errors
///
/// `EINVAL` for a file that the VM cannot have, `EMFILE`, `ENOMEM`, and what else the VFS returns;
/// nothing is left behind then.
pub fn create(vm: &Vm, traits: Traits) -> Result<i32> {
    const NAME: &CStr = c"[kvm-gmem]";

    let platform = platform::of(vm);
    if !traits.suit(vm, platform) {
        return Err(EINVAL);
    }
    let tables = tables()?;
    // Each of the guards below undoes one step; they are disarmed by forgetting them at the end.
    let fd = FileDescriptorReservation::get_unused_fd_flags(0)?;
    let data = FileData::new(vm, platform)?;
    let operations = Operations::get(tables.file_operations())?;

    // SAFETY: The file system is mounted for as long as KVM is there.
    let vfs = from_err_ptr(unsafe {
        bindings::anon_inode_make_secure_inode(
            tables.super_block(),
            NAME.as_char_ptr(),
            ptr::null(),
        )
    })?;
    let owned = OwnedInode(vfs);
    // SAFETY: Nobody else knows the inode yet. The size fits a loff_t, which Size guarantees.
    let inode = unsafe {
        bindings::gmem_inode_init(
            vfs,
            tables.inode_operations(),
            tables.address_space_operations(),
            traits.size.bytes() as i64,
        );
        GmemInode::set_up(GmemInode::from_vfs(vfs), traits)
    };
    // SAFETY: The inode goes before the data on every path below, and release() takes the data out.
    unsafe { inode.add_file(NonNull::from(&*data))? };

    // SAFETY: All of the arguments are valid; on success the file takes over inode and operations.
    let file = from_err_ptr(unsafe {
        bindings::alloc_file_pseudo(
            vfs,
            tables.mount(),
            NAME.as_char_ptr(),
            bindings::O_RDWR as c_int,
            tables.file_operations(),
        )
    })?;
    core::mem::forget(owned);
    core::mem::forget(operations);

    // SAFETY: The data goes in release(), when the file still has the inode, and has a reference
    // to the VM.
    if let Some(runs) = unsafe { RunsFile::new(vm, inode) } {
        data.keep(runs);
    }
    // SAFETY: The file is not visible to anybody yet. The data lives until release(). The reference
    // is the one that the file was made with.
    let file = unsafe {
        (*file).f_flags |= bindings::O_LARGEFILE;
        (*file).private_data = data.into_foreign();
        ARef::from_raw(NonNull::new_unchecked(file).cast::<File>())
    };
    // CAST: A descriptor is no larger than an int.
    let number = fd.reserved_fd() as i32;
    fd.fd_install(file);
    Ok(number)
}

/// A reference to the module of file operations, which release() of the file puts.
struct Operations(*const bindings::file_operations);

impl Operations {
    #[inline]
    fn get(operations: *const bindings::file_operations) -> Result<Self> {
        // SAFETY: The operations are static.
        if unsafe { bindings::gmem_fops_get(operations) } {
            Ok(Self(operations))
        } else {
            Err(ENOENT)
        }
    }
}

impl Drop for Operations {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::gmem_fops_put(self.0) }
    }
}

/// A new inode; dropping it puts.
struct OwnedInode(*mut bindings::inode);

impl Drop for OwnedInode {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::iput(self.0) }
    }
}

/// The `release` operation: the last reference to the file is gone.
///
/// The memory stays: it is the inode's, which mappings keep.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn release(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: The file is ours, and this is its end.
    let file = unsafe { GmemFile::from_raw(file) };
    let data = file.data();

    {
        // No new binding can be made, as this was the last reference. Existing ones must not be
        // undone meanwhile: unbind() is called with slots_lock held and frees the slot.
        let _slots = data.vm().lock_slots();
        let invalidate = file.inode().lock();
        let whole = file.inode().geometry().whole();

        {
            let bindings = file.inode().lock_bindings();
            data.for_each_slot(&bindings, &whole, |slot| {
                // SAFETY: The slot is bound to this file, with slots_lock held.
                unsafe { bindings::gmem_slot_set_file(slot.as_raw(), ptr::null_mut()) };
            });
        }
        // The slots are still bound, but nobody finds the file through them any more. This takes as
        // long as there are pages, which memory failure does not wait for: the mutex is not held.
        invalidate.take_from_guest(data);
        let bindings = file.inode().lock_bindings();
        file.inode().remove_file(&invalidate, &bindings, data);
    }

    // SAFETY: The pointer was made by create(), and nobody has it any more. This puts the VM as
    // well, so it comes last.
    drop(unsafe { Pin::<KBox<FileData>>::from_foreign((*file.as_raw()).private_data) });
    0
}

/// The `fallocate` operation.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn fallocate<T: GuestMemfd>(
    file: *mut bindings::file,
    mode: c_int,
    offset: bindings::loff_t,
    len: bindings::loff_t,
) -> c_long {
    // SAFETY: The VFS has a reference to the file, which is ours.
    let file = unsafe { GmemFile::from_raw(file) };

    from_result(|| {
        // vfs_fallocate() lets neither be negative, nor the sum overflow.
        let offset = u64::try_from(offset).map_err(|_| EINVAL)?;
        let len = u64::try_from(len).map_err(|_| EINVAL)?;
        T::fallocate(file, mode, offset, len)?;
        Ok(0)
    })
}

/// The `unlocked_ioctl` operation.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn ioctl<T: GuestMemfd>(
    file: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    // SAFETY: The VFS has a reference to the file, which is ours.
    let file = unsafe { GmemFile::from_raw(file) };

    from_result(|| {
        let arg = UserPointer::new(arg);
        match cmd {
            SET_MEMORY_ATTRIBUTES2 => {
                let Done { .. } = T::set_memory_attributes(file, arg)?;
            }
            GET_MEMORY_ATTRIBUTES2 => T::get_memory_attributes(file, arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    })
}

/// The `show_fdinfo` operation.
///
/// # Safety
///
/// To be called by procfs only.
pub(crate) unsafe extern "C" fn show_fdinfo<T: GuestMemfd>(
    out: *mut bindings::seq_file,
    file: *mut bindings::file,
) {
    // SAFETY: procfs has a reference to the file, which is ours.
    let file = unsafe { GmemFile::from_raw(file) };
    // SAFETY: `out` is valid, and its lock is held while it is shown.
    let out = unsafe { SeqFile::from_raw(out) };

    T::show_fdinfo(file, out);
}

/// The `mmap` operation.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn mmap(
    file: *mut bindings::file,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    from_result(|| {
        // SAFETY: The VFS has a reference to the file, which is ours.
        let file = unsafe { GmemFile::from_raw(file) };
        if !file.inode().is_mappable() {
            return Err(ENODEV);
        }
        let tables = tables()?;
        // SAFETY: The mapping is being made, so `vma` is valid and nobody else uses it.
        unsafe {
            if !bindings::gmem_vma_is_shared(vma) {
                return Err(EINVAL);
            }
            (*vma).vm_ops = tables.vm_operations();
        }
        Ok(0)
    })
}
