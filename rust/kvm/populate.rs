// SPDX-License-Identifier: GPL-2.0

//! Filling private pages before launch, for SNP and TDX.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h), `kvm_gmem_populate()`

use crate::{
    bindings,
    fs::address_space::{
        Exclusive,
        InvalidateGuard, //
    },
    kvm::{
        memslot::Memslot,
        platform,
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::folio::{
        Assignment,
        LockedFolio, //
    }, //
};
use kernel::{
    error::to_result,
    prelude::*, //
};

/// What the vendor does with each page, and where its contents come from.
pub struct Populate<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) callback: bindings::kvm_gmem_populate_cb,
    pub(crate) opaque: *mut c_void,
    pub(crate) source: usize,
    pub(crate) writable_source: bool,
}

/// What the vendor's code for a page means: 0 is success, and nothing else. `EFAULT` is for a source
/// that cannot be read, which the vendor does not do.
fn outcome(code: c_int) -> Result {
    match code {
        0 => Ok(()),
        code if code > 0 || code == EFAULT.to_errno() => Err(EIO),
        code => Err(Error::from_errno(code)),
    }
}

/// A page of the source, pinned; dropping it puts.
pub struct SourcePage(*mut bindings::page);

impl Drop for SourcePage {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: The reference is ours.
            unsafe { bindings::gmem_put_page(self.0) }
        }
    }
}

impl Populate<'_> {
    /// The VM.
    pub fn vm(&self) -> &Vm {
        self.vm
    }

    /// The slot with `gfn`.
    pub fn slot(&self, gfn: Gfn) -> Option<&Memslot> {
        // SAFETY: slots_lock is held for as long as this exists, so the slot stays.
        let slot = unsafe {
            bindings::gmem_vm_assert_slots_lock(self.vm.as_raw());
            bindings::gmem_vm_gmem_slot(self.vm.as_raw(), gfn.get())
        };
        if slot.is_null() {
            return None;
        }
        // SAFETY: As above.
        Some(unsafe { Memslot::from_raw(slot) })
    }

    /// How many of `wanted` pages from `gfn` on the slot has.
    pub fn pages_in(&self, slot: &Memslot, gfn: Gfn, wanted: u64) -> u64 {
        match (slot.index_of(gfn), slot.file_range()) {
            (Some(at), Some(range)) => wanted.min(range.end().get() - at.get()),
            _ => 0,
        }
    }

    /// Pins the `n`th page of the source. To be called without the invalidate lock: the source may
    /// be a mapping of this very file.
    ///
    /// # Errors
    ///
    /// `EFAULT`, `ENOMEM`. Without a source there is nothing to pin, and that is no error.
    pub fn pin_source(&self, n: u64) -> Result<SourcePage> {
        let mut page = core::ptr::null_mut();

        if self.source != 0 {
            let at = self.source + (n as usize) * kernel::page::PAGE_SIZE;
            // SAFETY: `page` has room for one.
            let pinned =
                unsafe { bindings::gmem_pin_user_page(at, self.writable_source, &mut page) };
            to_result(pinned.min(0))?;
            if pinned != 1 {
                return Err(ENOMEM);
            }
        }
        Ok(SourcePage(page))
    }

    /// Lets the vendor fill one page. The folio is up to date afterwards.
    ///
    /// `to` is whom the vendor gives it to, where that is to be remembered. It is remembered first,
    /// so that nothing can fail when the page is the platform's.
    ///
    /// # Errors
    ///
    /// `EINVAL` if KVM does not hold the page to be private, `EEXIST` if a platform has it already,
    /// and what the vendor returns.
    pub fn fill(
        &self,
        guard: &InvalidateGuard<'_, Exclusive>,
        gfn: Gfn,
        folio: LockedFolio<'_>,
        source: &SourcePage,
        to: Option<Assignment>,
    ) -> Result {
        let callback = self.callback.ok_or(EINVAL)?;

        if to.is_some() && platform::is_in_rmp(self.vm, &folio.frame()) {
            return Err(EEXIST);
        }
        if source.0.is_null() {
            // What is measured must not be what the last owner of the memory left.
            folio.prepare();
        }
        let page = folio.into_page();
        if !self.vm.mem_is_private(gfn) {
            return Err(EINVAL);
        }
        if let Some(to) = to {
            page.frame(guard).record(to)?;
        }
        // SAFETY: slots_lock and the invalidate lock are held, as the callback expects; its
        // arguments come from the caller of kvm_gmem_populate().
        let filled = outcome(unsafe {
            callback(
                self.vm.as_raw(),
                gfn.get(),
                page.pfn().get(),
                source.0,
                self.opaque,
            )
        });
        match filled {
            Ok(()) => page.mark_uptodate(),
            Err(_) if to.is_some() => {
                let frame = page.frame(guard);
                if platform::is_in_rmp(self.vm, &frame) {
                    // The vendor could not undo it. Nobody is to clear the page, as for its first
                    // use.
                    frame.leak();
                    page.mark_uptodate();
                } else {
                    frame.forget();
                }
            }
            Err(_) => {}
        }
        filled
    }
}
