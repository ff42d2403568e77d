// SPDX-License-Identifier: GPL-2.0

//! Host faults on a mapping of the file.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    bindings,
    export::GuestMemfd,
    fs::{
        address_space::Stable,
        inode::GmemInode, //
    },
    mm::folio::PreparedFolio,
    trace, //
};
use core::{
    marker::PhantomData,
    ptr, //
};
use gmem_policy::{
    range::PageIndex,
    request::Visibility, //
};
use kernel::prelude::*;

/// A fault that is being handled. The code above never has one to keep or to forget.
pub struct HostFault<'a> {
    vmf: *mut bindings::vm_fault,
    inode: &'a GmemInode,
    /// The page that it has got. Dropping the fault unlocks and puts it.
    folio: Option<PreparedFolio<'a>>,
}

/// Says that a fault has got its page, which the fault itself has. Only [`HostFault::serve`] makes
/// one; it cannot be kept for another fault.
pub struct Served<'a>(PhantomData<&'a ()>);

impl<'a> HostFault<'a> {
    /// Takes a fault from C.
    ///
    /// # Safety
    ///
    /// `vmf` must be a fault on a mapping of one of our files, and being handled for as long as
    /// `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw(vmf: *mut bindings::vm_fault) -> Self {
        // SAFETY: By the contract of this function. The mapping keeps the file.
        let inode = unsafe { GmemInode::of_file((*(*vmf).__bindgen_anon_1.vma).vm_file) };
        Self {
            vmf,
            inode,
            folio: None,
        }
    }

    /// The file's inode.
    #[inline]
    pub fn inode(&self) -> &'a GmemInode {
        self.inode
    }

    /// The page that is asked for.
    #[inline]
    pub(crate) fn at(&self) -> PageIndex {
        // SAFETY: The fault is being handled, so `vmf` is valid.
        // CAST: unsigned long has 64 bits here.
        PageIndex::new(unsafe { (*self.vmf).__bindgen_anon_1.pgoff as u64 })
    }

    /// Gets the faulting page for the host, if it is shared, to be mapped if the fault succeeds.
    ///
    /// The attribute is held until the folio is locked, and that stays locked until the page table
    /// entry is in place, by which conversion knows that it has to wait.
    ///
    /// # Errors
    ///
    /// `EFAULT` behind the end of the file, `EACCES` for a private page; `EINVAL` if `stable` is
    /// another file's, or if the fault has its page. `EHWPOISON` for a page that failed before
    /// anybody used it, of others the fault handling core says so itself. `ENOMEM`, and what else
    /// the page cache returns.
    #[inline]
    pub fn serve(&mut self, stable: &Stable<'_>) -> Result<Served<'a>> {
        let inode = self.inode;
        if !ptr::eq(stable.inode(), inode) || self.folio.is_some() {
            return Err(EINVAL);
        }
        let at = self.at();
        if at.get() >= inode.geometry().pages() {
            return Err(EFAULT);
        }
        if stable.visibility(at) == Visibility::Private {
            return Err(EACCES);
        }
        // No byte of an earlier owner gets out.
        let folio = inode.folio(at)?.prepare()?;
        let first_use = folio.is_first_use();
        trace::host_fault(move || {
            let offset = trace::offset(inode, at);
            (trace::ino(inode), offset, first_use)
        });
        self.folio = Some(folio);
        Ok(Served(PhantomData))
    }

    /// Gives the page to the fault handling core. Returns whether there is one.
    #[inline]
    fn finish(self) -> bool {
        let Some(folio) = self.folio else {
            return false;
        };
        // SAFETY: `vmf` is valid; lock and reference go to the fault handling core.
        unsafe { (*self.vmf).page = folio.into_locked_page() };
        true
    }
}

/// The `fault` operation.
///
/// # Safety
///
/// To be called by the fault handling core only.
pub(crate) unsafe extern "C" fn fault<T: GuestMemfd>(
    vmf: *mut bindings::vm_fault,
) -> bindings::vm_fault_t {
    // SAFETY: The mapping's file is one of ours and is there while mmap_lock or the VMA lock is held.
    let locks = unsafe { GmemInode::of_file((*(*vmf).__bindgen_anon_1.vma).vm_file) }.fault_lock();
    if let Some(mapping) = locks {
        // SAFETY: The fault is one of this mapping. If the lock is not taken, neither the fault's
        // VMA nor the file may be there any more, and neither is used.
        let result = unsafe { bindings::gmem_fault_lock(vmf, mapping) };
        if result != 0 {
            return result;
        }
    }
    // SAFETY: The core handles a fault, and the mapping's operations are ours. As mmap_lock or the
    // VMA lock was not dropped, the file is there.
    let mut fault = unsafe { HostFault::from_raw(vmf) };
    // SAFETY: Taken above for a file that converts in place.
    let stable = unsafe { Stable::assume_locked(fault.inode()) };

    match T::fault(&mut fault, &stable) {
        Ok(Served(_)) if fault.finish() => bindings::vm_fault_reason_VM_FAULT_LOCKED,
        // The page of another fault was passed off as this one's.
        Ok(Served(_)) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        // RETRY would say that mmap_lock was dropped. This has the access made again.
        Err(e) if e == EAGAIN => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
        Err(e) if e == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
        Err(e) if e == EHWPOISON => bindings::vm_fault_reason_VM_FAULT_HWPOISON,
        Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
    }
}

#[cfg(CONFIG_NUMA)]
/// The `set_policy` operation.
///
/// # Safety
///
/// To be called by the memory policy core only.
pub(crate) unsafe extern "C" fn set_policy(
    vma: *mut bindings::vm_area_struct,
    policy: *mut bindings::mempolicy,
) -> c_int {
    // SAFETY: The mapping's file is one of ours; the arguments are passed on.
    unsafe { GmemInode::of_file((*vma).vm_file).policy().set(vma, policy) }
}

#[cfg(CONFIG_NUMA)]
/// The `get_policy` operation.
///
/// Returns NULL where no policy was set, and not the task's: that is how get_mempolicy() tells.
///
/// # Safety
///
/// To be called by the memory policy core only.
pub(crate) unsafe extern "C" fn get_policy(
    vma: *mut bindings::vm_area_struct,
    addr: usize,
    ilx: *mut usize,
) -> *mut bindings::mempolicy {
    // SAFETY: The mapping's file is one of ours, and `ilx` is valid for writes.
    unsafe {
        let inode = GmemInode::of_file((*vma).vm_file);
        *ilx = inode.number();
        let at = bindings::gmem_vma_index(vma, addr);
        inode.policy().at(PageIndex::new(at as u64)).into_raw()
    }
}
