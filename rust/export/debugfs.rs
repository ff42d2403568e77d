// SPDX-License-Identifier: GPL-2.0

//! The runs of a file in debugfs: `guest_memfd-INODE` in the VM's directory.
//!
//! C header: [`include/linux/seq_file.h`](srctree/include/linux/seq_file.h)

use crate::{
    bindings,
    fs::{
        debugfs::DebugfsFile,
        inode::GmemInode,
        tables::tables, //
    },
    guest_memfd::GuestMemfd,
    kvm::vm::Vm, //
};
use gmem_policy::plan::query;
use gmem_types::range::PageIndex;
use kernel::{
    prelude::*,
    seq_file::SeqFile,
    str::CString, //
};

/// Makes the file. If there is no memory for its name, there is no file.
///
/// # Safety
///
/// `vm` and `inode` must outlive it.
pub(super) unsafe fn runs_file(vm: &Vm, inode: &GmemInode) -> Option<DebugfsFile> {
    let tables = tables().ok()?;
    let name = CString::try_from_fmt(fmt!("guest_memfd-{}", inode.number())).ok()?;
    let data = core::ptr::from_ref(inode).cast_mut().cast();

    // SAFETY: The operations outlive the file, as KVM stays while it is open; they use the inode.
    Some(unsafe { DebugfsFile::new(vm, &name, data, tables.runs_operations()) })
}

/// The operations of the file.
pub(crate) const fn operations() -> bindings::file_operations {
    bindings::file_operations {
        open: Some(open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::seq_release),
        ..pin_init::zeroed()
    }
}

/// The file as a sequence of runs. The position is a page index, and an iterator points to one.
pub(crate) const fn sequence<T: GuestMemfd>() -> bindings::seq_operations {
    bindings::seq_operations {
        start: Some(start),
        stop: Some(stop),
        next: Some(next),
        show: Some(show::<T>),
    }
}

/// # Safety
///
/// To be called by the VFS only.
unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    match tables() {
        // SAFETY: The file is being opened, and the operations are static.
        Ok(tables) => unsafe { bindings::seq_open(file, tables.runs_sequence()) },
        Err(error) => error.to_errno(),
    }
}

/// The inode whose runs are read.
///
/// # Safety
///
/// Within an operation of the sequence, which removing the file waits for.
unsafe fn inode<'a>(m: *mut bindings::seq_file) -> &'a GmemInode {
    // SAFETY: A sequence has its file, whose inode has the pointer that runs_file() gave it. The
    // target is still there by the contract of this function.
    unsafe { &*(*(*(*m).file).f_inode).i_private.cast() }
}

/// # Safety
///
/// To be called by seq_file only.
unsafe extern "C" fn start(m: *mut bindings::seq_file, pos: *mut bindings::loff_t) -> *mut c_void {
    // SAFETY: By the contract of this function.
    let (inode, at) = unsafe { (inode(m), *pos) };

    match u64::try_from(at) {
        Ok(at) if at < inode.geometry().pages() => pos.cast(),
        _ => core::ptr::null_mut(),
    }
}

/// # Safety
///
/// To be called by seq_file only, after [`show`].
unsafe extern "C" fn next(
    m: *mut bindings::seq_file,
    _at: *mut c_void,
    pos: *mut bindings::loff_t,
) -> *mut c_void {
    // SAFETY: By the contract of this function. An end of pages fits.
    unsafe {
        *pos = (*m).private.addr() as bindings::loff_t;
        start(m, pos)
    }
}

/// # Safety
///
/// To be called by seq_file only.
unsafe extern "C" fn stop(_m: *mut bindings::seq_file, _at: *mut c_void) {}

/// Shows the run that the iterator points to, and leaves its end for [`next`]: if the map changes
/// in between, each page is still shown once.
///
/// # Safety
///
/// To be called by seq_file only, with what [`start`] or [`next`] returned.
unsafe extern "C" fn show<T: GuestMemfd>(m: *mut bindings::seq_file, at: *mut c_void) -> c_int {
    // SAFETY: By the contract of this function; start() has seen that the index is not negative.
    let (inode, at) = unsafe { (inode(m), *at.cast::<bindings::loff_t>() as u64) };
    let run = query(PageIndex::new(at), &inode.geometry(), inode);

    // SAFETY: The sequence is locked, and its private pointer is ours.
    // CAST: A page index is an unsigned long.
    unsafe {
        (*m).private = core::ptr::without_provenance_mut(run.range.end().get() as usize);
        T::show_run(&run, SeqFile::from_raw(m));
    }
    0
}
