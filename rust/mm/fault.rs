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
    mm::folio::LockedFolio,
    trace, //
};
use core::marker::PhantomData;
use gmem_policy::{
    range::PageIndex,
    request::Visibility, //
};
use kernel::prelude::*;

/// A fault that is being handled.
pub struct HostFault<'a> {
    vmf: *mut bindings::vm_fault,
    inode: &'a GmemInode,
}

/// A fault that has got its page. Only [`HostFault::serve`] makes one.
pub struct Served(PhantomData<()>);

impl<'a> HostFault<'a> {
    /// The file's inode.
    #[inline]
    pub fn inode(&self) -> &'a GmemInode {
        self.inode
    }

    /// Whether the host may have the faulting page, for as long as its attribute is stable.
    ///
    /// # Errors
    ///
    /// `EFAULT` behind the end of the file, `EACCES` for a private page; `EINVAL` if `stable` is
    /// another file's.
    #[inline]
    pub fn permit<'s>(&self, stable: &'s Stable<'_>) -> Result<Permit<'s>> {
        if !core::ptr::eq(stable.inode(), self.inode) {
            return Err(EINVAL);
        }
        // SAFETY: The fault is being handled, so `vmf` is valid.
        // CAST: unsigned long has 64 bits here.
        let at = PageIndex::new(unsafe { (*self.vmf).__bindgen_anon_1.pgoff as u64 });
        if at.get() >= self.inode.geometry().pages() {
            return Err(EFAULT);
        }
        match stable.visibility(at) {
            Visibility::Shared => Ok(Permit {
                at,
                _stable: PhantomData,
            }),
            Visibility::Private => Err(EACCES),
        }
    }

    /// Maps the folio's page for the host.
    ///
    /// The folio stays locked until the page table entry is in place, by which conversion knows
    /// that it has to wait.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the folio is not that of the page that was permitted.
    #[inline]
    pub fn serve(self, permit: Permit<'_>, folio: LockedFolio<'_>) -> Result<Served> {
        if !folio.is_page_of(self.inode, permit.at) {
            return Err(EINVAL);
        }
        // No byte of an earlier owner gets out, whether the caller thought of it or not.
        let first_use = folio.prepare();
        let (inode, at) = (self.inode, permit.at);
        trace::host_fault(move || {
            let offset = trace::offset(inode, at);
            (trace::ino(inode), offset, first_use)
        });
        // SAFETY: `vmf` is valid; lock and reference go to the fault handling core.
        unsafe { (*self.vmf).page = folio.into_locked_page() };
        Ok(Served(PhantomData))
    }
}

/// The host may have a page: it is shared, and stays so while this exists.
pub struct Permit<'s> {
    at: PageIndex,
    _stable: PhantomData<&'s ()>,
}

impl Permit<'_> {
    /// The page.
    #[inline]
    pub fn at(&self) -> PageIndex {
        self.at
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
    // SAFETY: The mapping's file is one of ours and cannot go away during the fault.
    let inode = unsafe { GmemInode::of_file((*(*vmf).__bindgen_anon_1.vma).vm_file) };

    match T::fault(HostFault { vmf, inode }) {
        Ok(Served(_)) => bindings::vm_fault_reason_VM_FAULT_LOCKED,
        Err(e) if e == EAGAIN => bindings::vm_fault_reason_VM_FAULT_RETRY,
        Err(e) if e == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
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
