// SPDX-License-Identifier: GPL-2.0

//! The operations of a platform on a page: the steps of a conversion, of a guest fault, of a launch
//! and of freeing that only the platform can do.

use gmem_policy::{
    contract::{
        self,
        Refusal, //
    },
    request::Request, //
};
use gmem_sys::{
    export::scramble,
    fs::{
        block::PrivateBlock,
        page_cache::PrivatePage, //
    },
    kvm::{
        migrate::{
            Destination,
            Moved,
            Source, //
        },
        mmu::Mapped,
        platform::{
            Fatal,
            GivenUp,
            Written, //
        },
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::folio::{
        Assignment,
        FolioRef,
        Frame, //
    }, //
};
use gmem_types::{
    content::Action,
    platform::Platform, //
};
use kernel::{
    error::VTABLE_DEFAULT_ERROR,
    prelude::*, //
};

/// The operations of a platform on a page.
///
/// The architecture takes pages out of the guests' page tables (`kvm_unmap_gfn_range()`,
/// `kvm_arch_gmem_invalidate_range()`), before [`make_shared`](Self::make_shared). All pages are
/// small ones, also where one mapping of a guest covers many, and one step gives a block.
#[vtable]
pub(crate) trait Vendor {
    /// Its rows of the contract.
    const PLATFORM: Platform;

    /// Guest fault: how large a mapping may be, as a power of two in pages. KVM and the memory may
    /// allow less. A mapping of private pages that the platform is given is as large as what it was
    /// given at once.
    const MAX_MAPPING_ORDER: u8 = u8::MAX;

    /// Step 5: what is done to the bytes of pages that the platform does not own, or has given back.
    ///
    /// # Errors
    ///
    /// [`Refusal`], for the whole request.
    fn action(request: &Request) -> Result<Action, Refusal> {
        contract::action(Self::PLATFORM, false, request.to(), request.content())
            .map(|action| action.with_scrambling(scramble()))
    }

    /// Step 6: whether the platform owns an allocated page, on platforms where the invalidate lock
    /// keeps the answer true. Called with the lock held exclusively.
    ///
    /// # Errors
    ///
    /// If the platform cannot tell.
    fn owns(_vm: &Vm, _folio: &FolioRef<'_>) -> Result<bool> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Step 9b: the same on platforms where only an invalidation keeps the answer true. Called with
    /// `mmu_lock` held, once for each guest frame.
    fn owns_mapped(_mapped: &Mapped<'_>) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Guest fault: gives a private page to the platform, to be seen at `gfn`. Called with the
    /// invalidate lock held shared; the same page is asked for again after each invalidation.
    ///
    /// # Errors
    ///
    /// What the platform returns. The page has not changed then.
    fn make_private(_vm: &Vm, _gfn: Gfn, _page: &PrivatePage<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Guest fault: gives a block to the platform in one step, to be seen from `gfn` on, where no
    /// platform was given one of its pages. After an error, [`make_private`](Self::make_private) is
    /// called for the page of the fault. Called with the invalidate lock held shared.
    ///
    /// # Errors
    ///
    /// What the platform returns. No page has changed then.
    fn make_block_private(_vm: &Vm, _gfn: Gfn, _block: &PrivateBlock<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Launch: to whom the vendor's own populate callback gives the page, to be recorded.
    ///
    /// # Errors
    ///
    /// What the platform returns.
    fn populate(_vm: &Vm, _gfn: Gfn) -> Result<Assignment> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Step 10: takes back a page that becomes shared, without touching its contents. The
    /// caller looks the result up, and does not rely on the vendor.
    ///
    /// # Errors
    ///
    /// [`Fatal`]: the page is lost, and so is the VM.
    fn make_shared(_folio: &FolioRef<'_>) -> Result<(), Fatal> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Step 10: makes all bytes of a page zero where the host may not write them itself.
    ///
    /// # Errors
    ///
    /// [`Fatal`]: the page is lost, and so is the VM.
    fn zero(_page: GivenUp<'_>) -> Result<Written<'_>, Fatal> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Moves all bytes of a page to other memory. No guest has the page in page tables of the host's,
    /// but a guest may have it in its S-EPT. None gets it in either meanwhile.
    /// Called with the folio locked and the invalidate lock held shared. Any allocation of memory
    /// can lead here, so it must not wait for a lock under which others allocate. Without this
    /// operation no file is migratable.
    ///
    /// # Errors
    ///
    /// What the platform returns. The page stays where it is, with its bytes, then.
    fn migrate<'m>(_from: Source<'m>, _to: Destination<'m>) -> Result<Moved<'m>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Takes back a page that is freed. There may be neither VM nor file any more.
    ///
    /// # Errors
    ///
    /// [`Fatal`]: the page is lost.
    fn reclaim(_frame: &Frame<'_>) -> Result<(), Fatal> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}
