// SPDX-License-Identifier: GPL-2.0

//! Guest faults, as far as the file has a part in them: KVM asks for the page of a guest frame.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h), `kvm_gmem_get_pfn()`

use crate::{
    fs::{
        address_space::Stable,
        file_ops::GmemFile,
        inode::GmemInode, //
    },
    kvm::vm::{
        Gfn,
        Vm, //
    },
    mm::folio::{
        PageRef,
        PreparedFolio, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr, //
};
use gmem_policy::{
    contract::Platform,
    range::PageIndex, //
};
use kernel::prelude::*;

/// A guest fault that is being handled.
pub struct GuestFault<'a> {
    vm: &'a Vm,
    file: &'a GmemFile,
    gfn: Gfn,
    at: PageIndex,
}

/// A page for a guest. Only [`GuestFault::serve`] makes one, which consumes the fault; it cannot be
/// kept for another.
pub struct GuestPage<'a> {
    pub(crate) page: PageRef,
    /// How large a mapping may be: 2 to the power of this, in pages.
    pub(crate) max_order: u8,
    _fault: PhantomData<&'a ()>,
}

impl<'a> GuestFault<'a> {
    /// A fault of `vm` at `gfn`, where it sees the page `at` of the file.
    #[inline]
    pub(crate) fn new(vm: &'a Vm, file: &'a GmemFile, gfn: Gfn, at: PageIndex) -> Self {
        Self { vm, file, gfn, at }
    }

    /// The VM.
    #[inline]
    pub fn vm(&self) -> &'a Vm {
        self.vm
    }

    /// The platform that the VM is on, if its memory can be converted in place.
    #[inline]
    pub fn platform(&self) -> Option<Platform> {
        self.file.platform()
    }

    /// The file's inode.
    #[inline]
    pub fn inode(&self) -> &'a GmemInode {
        self.file.inode()
    }

    /// Where the guest sees the page.
    #[inline]
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// The page in the file.
    #[inline]
    pub fn at(&self) -> PageIndex {
        self.at
    }

    /// The folio of the page, locked, allocated if need be, and zeroed at its first use; sleeps.
    ///
    /// # Errors
    ///
    /// `EHWPOISON` if the memory has failed, `EINVAL` if `stable` is another file's, `ENOMEM`, and
    /// what else the page cache returns.
    #[inline]
    pub(crate) fn folio<'s>(&self, stable: &'s Stable<'_>) -> Result<PreparedFolio<'s>> {
        if !ptr::eq(stable.inode(), self.inode()) {
            return Err(EINVAL);
        }
        let folio = stable.inode().folio(self.at)?;
        if folio.is_poisoned() {
            return Err(EHWPOISON);
        }
        folio.prepare()
    }

    /// Gives the page to KVM, after `f` has seen its folio; sleeps.
    ///
    /// `f` returns how large a mapping it may be a part of, as a power of two in pages. It gets no
    /// larger than the folio.
    ///
    /// # Errors
    ///
    /// Those of [`folio`](Self::folio), and what `f` returns.
    #[inline]
    pub fn serve(
        self,
        stable: &Stable<'_>,
        f: impl FnOnce(&PreparedFolio<'_>) -> Result<u8>,
    ) -> Result<GuestPage<'a>> {
        let folio = self.folio(stable)?;
        let max_order = f(&folio)?;
        Ok(GuestPage {
            max_order: max_order.min(folio.order()),
            page: folio.into_page(),
            _fault: PhantomData,
        })
    }
}
