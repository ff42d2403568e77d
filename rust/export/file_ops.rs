// SPDX-License-Identifier: GPL-2.0

//! Making a file, and the operations of files that the VFS calls.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    export::debugfs,
    fs::{
        file::GmemFile,
        file_data::FileData,
        inode::{
            GmemInode,
            Traits, //
        },
        tables::tables, //
    },
    guest_memfd::GuestMemfd,
    ioctl::UserPointer,
    kvm::{
        conversion::Done,
        platform,
        vm::Vm, //
    }, //
};
use core::ptr::{
    self,
    NonNull, //
};
use gmem_policy::request::{
    GET_MEMORY_ATTRIBUTES2,
    SET_MEMORY_ATTRIBUTES2, //
};
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
    types::ForeignOwnable, //
};

/// Makes a file on a new inode for `vm`, and a descriptor for it in the calling process.
///
/// # Errors
///
/// `EINVAL` for a file that the VM cannot have, `EMFILE`, `ENOMEM`, and other errors of the VFS.
/// Everything is undone then.
pub fn create(vm: &Vm, traits: Traits) -> Result<i32> {
    const NAME: &CStr = c"[kvm-gmem]";

    let platform = platform::of(vm);
    if !traits.suit(vm, platform) {
        return Err(EINVAL);
    }
    if traits.migratable && !platform::can_move(vm) {
        return Err(EINVAL);
    }
    // A page is moved by itself (kvm/migrate.rs).
    if traits.large_folios && (traits.migratable || !platform::has_large_folios(vm)) {
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
            traits.migratable,
            traits.large_folios,
        );
        GmemInode::set_up(GmemInode::from_vfs(vfs), traits, platform)
    };
    // SAFETY: The inode is put before the data on every path below, and release() takes the data out.
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

    // SAFETY: The data is dropped in release(), when the file still has the inode, and has a reference
    // to the VM.
    if let Some(runs) = unsafe { debugfs::runs_file(vm, inode) } {
        data.keep(runs);
    }
    // SAFETY: The file is not visible to anybody yet. The data lives until release(). The reference
    // is the one that the file was made with.
    let file = unsafe {
        (*file).f_flags |= bindings::O_LARGEFILE;
        (*file).private_data = data.into_foreign();
        ARef::from_raw(NonNull::new_unchecked(file).cast::<File>())
    };
    // CAST: A descriptor fits an int.
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
/// The memory stays: it belongs to the inode, which mappings keep alive.
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
        // The slots are still bound, but the file cannot be found through them any more. This step
        // is linear in the pages, so memory failure must not wait for it: the mutex is not held.
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

/// The `get_unmapped_area` operation: where the host maps the file, if it leaves that to the kernel.
/// If the file has large folios, it is aligned like them, so that they are mapped as a whole.
///
/// # Safety
///
/// To be called by the VFS only.
pub(crate) unsafe extern "C" fn get_unmapped_area(
    file: *mut bindings::file,
    addr: c_ulong,
    len: c_ulong,
    pgoff: c_ulong,
    flags: c_ulong,
) -> c_ulong {
    // SAFETY: The VFS has a reference to the file, which is ours. The other arguments are passed on.
    unsafe {
        let large = GmemFile::from_raw(file).inode().has_large_folios();
        bindings::gmem_get_unmapped_area(file, addr, len, pgoff, flags, large)
    }
}
