// SPDX-License-Identifier: GPL-2.0

//! Host faults on a mapping of the file.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::{
    bindings,
    fs::{
        address_space::Stable,
        inode::GmemInode,
        page_cache::{
            LockedFolio,
            PreparedFolio, //
        }, //
    },
    trace, //
};
use core::{
    cell::Cell,
    marker::PhantomData,
    ptr, //
};
use gmem_types::{
    range::PageIndex,
    visibility::Visibility, //
};
use kernel::prelude::*;

/// A fault that is being handled. The code above can neither keep nor forget one.
pub struct HostFault<'a> {
    vmf: *mut bindings::vm_fault,
    inode: &'a GmemInode,
    /// The page of the fault, once it has one. Dropping the fault unlocks and puts it.
    folio: Option<PreparedFolio<'a>>,
    /// The page was looked up, and has no folio.
    missing: Cell<bool>,
}

/// Evidence that a fault has got its page, which the fault itself holds. Only [`HostFault::serve`]
/// makes one; it cannot be kept for another fault.
pub struct Served<'a>(PhantomData<&'a ()>);

impl<'a> HostFault<'a> {
    /// Takes a fault from C.
    ///
    /// # Safety
    ///
    /// `vmf` must be a fault on a mapping of a guest_memfd, and being handled for as long as
    /// `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw(vmf: *mut bindings::vm_fault) -> Self {
        // SAFETY: By the contract of this function. The mapping keeps the file.
        let inode = unsafe { GmemInode::of_file((*(*vmf).__bindgen_anon_1.vma).vm_file) };
        Self {
            vmf,
            inode,
            folio: None,
            missing: Cell::new(false),
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
    /// The attribute cannot change until the folio is locked. The folio stays locked until the page
    /// table entry is in place, so a conversion waits for it.
    ///
    /// # Errors
    ///
    /// `EFAULT` behind the end of the file, `EACCES` for a private page; `EINVAL` if `stable` is
    /// another file's, or if the fault has its page. `EHWPOISON` for a page that failed before
    /// anybody used it; for other failed pages the fault handling core reports it. `ENOMEM`, and
    /// other errors of the page cache.
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
        // The page must not show a byte of an earlier owner.
        let folio = LockedFolio::get_if_missing(inode, at, self.missing.get())?.prepare()?;
        self.trace(folio.is_first_use());
        self.folio = Some(folio);
        Ok(Served(PhantomData))
    }

    /// Maps the page and a few behind it, as far as they are shared and in use, if the host has the
    /// page before mapped: the host then seems to go through the file. For random accesses this
    /// would cost more than it saves.
    ///
    /// `stable` is held until all page table entries are in place, so a conversion finds them.
    ///
    /// Returns the value for the fault handling core if the requested page was mapped as well, and
    /// 0 otherwise.
    #[inline]
    pub(crate) fn around(&self, stable: &Stable<'_>) -> bindings::vm_fault_t {
        // Where a hypervisor relies on the record of a page, each page that the host gets has to be
        // recorded. Guests that the hypervisor keeps from the host have no other memory to map.
        if cfg!(CONFIG_HAVE_KVM_ARCH_GMEM_TAKE_BACK) && self.inode.converts_in_place() {
            return 0;
        }
        let mut missing = false;
        // SAFETY: The fault is being handled.
        let follows = unsafe { bindings::gmem_fault_follows(self.vmf, &mut missing) };
        self.missing.set(missing);
        if !follows {
            return 0;
        }
        let run = stable.run_at(self.at());
        if run.visibility == Visibility::Private || !run.range.contains(self.at()) {
            return 0;
        }
        // SAFETY: As above. The pages are shared, and stay so meanwhile.
        let mapped =
            unsafe { bindings::gmem_fault_around(self.vmf, run.range.last().get() as usize) };
        if mapped != 0 {
            self.trace(false);
        }
        mapped
    }

    fn trace(&self, first_use: bool) {
        let (inode, at) = (self.inode, self.at());
        trace::host_fault(move || (inode.number(), inode.offset_of(at), first_use));
    }

    /// Gives the page to the fault handling core, or maps it. Returns the value for the core; [`None`]
    /// if there is no page.
    #[inline]
    pub(crate) fn finish(self) -> Option<bindings::vm_fault_t> {
        match self.folio?.into_locked_page() {
            Ok(page) => {
                // SAFETY: `vmf` is valid; lock and reference go to the fault handling core.
                unsafe { (*self.vmf).page = page };
                Some(bindings::vm_fault_reason_VM_FAULT_LOCKED)
            }
            // SAFETY: The fault is being handled, and the folio locked until this has returned.
            Err(folio) => Some(unsafe { bindings::gmem_fault_one(self.vmf, folio.page()) }),
        }
    }
}

/// The `map_pages` operation, which read faults come to first. Others call `fault` only.
///
/// Because this operation exists, the core handles faults under the VMA lock alone.
///
/// # Safety
///
/// To be called by the fault handling core only.
pub(crate) unsafe extern "C" fn map_pages(
    vmf: *mut bindings::vm_fault,
    _start: usize,
    _end: usize,
) -> bindings::vm_fault_t {
    // SAFETY: The core handles a fault, and the mapping's operations are ours.
    let fault = unsafe { HostFault::from_raw(vmf) };

    // This is called inside RCU. fault() waits for a conversion.
    match Stable::try_new(fault.inode()) {
        Some(stable) => fault.around(&stable),
        None => 0,
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
/// Returns NULL, and not the task's policy, where no policy was set: get_mempolicy() relies on
/// this.
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
        // CAST: A long has 64 bits here.
        *ilx = inode.number() as usize;
        let at = bindings::gmem_vma_index(vma, addr);
        inode.policy().at(PageIndex::new(at as u64)).into_raw()
    }
}
