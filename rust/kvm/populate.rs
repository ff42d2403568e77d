// SPDX-License-Identifier: GPL-2.0

//! Filling private pages before launch, for SNP and TDX.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h), `kvm_gmem_populate()`

use crate::{
    bindings,
    fs::{
        address_space::{
            Exclusive,
            InvalidateGuard, //
        },
        file::ActiveFile,
        page_cache::LockedFolio, //
    },
    kvm::{
        memslot::Memslot,
        platform,
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::folio::Assignment, //
};
use kernel::{
    error::to_result,
    prelude::*, //
};

/// The vendor's operation on each page of a range of guest frames, and the source of its contents.
pub struct Populate<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) start: Gfn,
    pub(crate) wanted: u64,
    pub(crate) callback: bindings::kvm_gmem_populate_cb,
    pub(crate) opaque: *mut c_void,
    pub(crate) source: usize,
    pub(crate) writable_source: bool,
}

/// Converts the vendor's code for a page: only 0 is success. `EFAULT` is for a source that cannot be
/// read, which is not the vendor's task.
fn outcome(code: c_int) -> Result {
    match code {
        0 => Ok(()),
        code if code > 0 || code == EFAULT.to_errno() => Err(EIO),
        code => Err(Error::from_errno(code)),
    }
}

/// A guest frame to fill, and the pinned page of its source; dropping it puts the reference.
pub struct Source {
    gfn: Gfn,
    page: *mut bindings::page,
}

impl Source {
    /// The guest frame.
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if !self.page.is_null() {
            // SAFETY: The reference is ours.
            unsafe { bindings::gmem_put_page(self.page) }
        }
    }
}

impl Populate<'_> {
    /// The VM.
    pub fn vm(&self) -> &Vm {
        self.vm
    }

    /// The first guest frame.
    pub fn start(&self) -> Gfn {
        self.start
    }

    /// How many pages are wanted.
    pub fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Returns how many of the wanted pages are in the slot of the first one.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is none.
    pub fn pages(&self) -> Result<u64> {
        let slot = self.slot(self.start)?;
        let at = slot.index_of(self.start).ok_or(EINVAL)?;
        let end = slot.file_range().ok_or(EINVAL)?.end();
        Ok(self.wanted.min(end.get().saturating_sub(at.get())))
    }

    fn slot(&self, gfn: Gfn) -> Result<&Memslot> {
        // SAFETY: slots_lock is held for as long as this exists, so the slot stays.
        let slot = unsafe {
            bindings::gmem_vm_assert_slots_lock(self.vm.as_raw());
            bindings::gmem_vm_gmem_slot(self.vm.as_raw(), gfn.get())
        };
        if slot.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: As above.
        Ok(unsafe { Memslot::from_raw(slot) })
    }

    /// Pins the source of the `n`th page. To be called without the invalidate lock: the source may
    /// be a mapping of this very file.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such page, `EFAULT`, `ENOMEM`. Without a source there is nothing to
    /// pin, and that is no error.
    pub fn pin_source(&self, n: u64) -> Result<Source> {
        let mut page = core::ptr::null_mut();

        if n >= self.wanted {
            return Err(EINVAL);
        }
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
        Ok(Source {
            gfn: Gfn::new(self.start.get().wrapping_add(n)),
            page,
        })
    }

    /// The file that has the page of a guest frame, with a reference.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is none, `EFAULT` if it is being closed.
    pub fn file(&self, gfn: Gfn) -> Result<ActiveFile> {
        self.slot(gfn)?.active_file().ok_or(EFAULT)
    }

    /// Lets the vendor fill the page of the guest frame that the source is for. The folio is up to
    /// date afterwards.
    ///
    /// `to` says to whom the vendor gives the page, if this is to be recorded. It is recorded
    /// first, so that nothing can fail once the page is the platform's.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the page is not private for KVM, or if the locked file is not the one that has
    /// the page; `EHWPOISON` if the memory has failed; `EEXIST` if a platform has it already; and
    /// other errors of the page cache and the vendor.
    pub fn fill(
        &self,
        guard: &InvalidateGuard<'_, Exclusive>,
        source: Source,
        to: Option<Assignment>,
    ) -> Result {
        let gfn = source.gfn;
        let slot = self.slot(gfn)?;
        let at = slot.index_of(gfn).ok_or(EINVAL)?;
        if slot.with_inode(|inode, _| core::ptr::eq(inode, guard.inode())) != Some(true) {
            return Err(EINVAL);
        }
        let folio = LockedFolio::get(guard.inode(), at)?;
        if folio.is_poisoned() {
            return Err(EHWPOISON);
        }
        if !self.vm.mem_is_private(gfn) {
            return Err(EINVAL);
        }
        self.give(folio, source, to)
    }

    /// Lets the vendor fill a folio, which it gives to the platform.
    pub(crate) fn give(
        &self,
        folio: LockedFolio<'_>,
        source: Source,
        to: Option<Assignment>,
    ) -> Result {
        let callback = self.callback.ok_or(EINVAL)?;

        // The vendor fills a page, and all of the folio would count as filled.
        if folio.pages() != 1 {
            return Err(EINVAL);
        }
        if platform::is_assigned(&folio.frame()) {
            return Err(EEXIST);
        }
        let page = if source.page.is_null() {
            // The bytes that are measured must not be those of the memory's last owner.
            folio.prepare()?.into_page()
        } else {
            folio.into_page()
        };
        if let Some(to) = to {
            page.with_frame(|frame| frame.record(to))?;
        }
        // SAFETY: slots_lock and the invalidate lock are held, as the callback expects; its
        // arguments come from the caller of kvm_gmem_populate().
        let filled = outcome(unsafe {
            callback(
                self.vm.as_raw(),
                source.gfn.get(),
                page.pfn().get(),
                source.page,
                self.opaque,
            )
        });
        let lost = filled.is_err()
            && page.with_frame(|frame| {
                // A page without a record may have been given away, too.
                let lost = platform::is_assigned(frame);
                if lost {
                    // The vendor could not undo it.
                    frame.leak();
                } else {
                    frame.forget();
                }
                lost
            });
        // A lost page must not be zeroed at a first use.
        if filled.is_ok() || lost {
            page.mark_uptodate();
        }
        filled
    }
}
