// SPDX-License-Identifier: GPL-2.0

//! pKVM: EL2 has page tables that the host cannot access, and protects the guest's pages by them.
//!
//! A page becomes the guest's when it is mapped, which `mmu_invalidate_seq` guards. So there is
//! nothing to do when the file hands the page out. The guest shares it with the host, and takes it
//! back, by hypercalls to EL2. Conversion moves nothing: it makes the file agree with EL2, and is
//! refused if EL2 says something else. The host reads contents and EL2 zeroes them: only EL2 can
//! check the owner of a page and write it in one step. For the same reason EL2 moves the pages that
//! the guest has, those that it shares as well: only EL2 can keep the guest out meanwhile.
//!
//! A guest whose hypercalls are exits to user space (`KVM_CAP_EXIT_HYPERCALL`) can unshare only
//! pages that are private in the file. Any other guest can take a page back between the check and
//! the use; platforms.rst describes the consequences.

use crate::platform::vendor::Vendor;
use gmem_sys::kvm::{
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
    }, //
};
use gmem_types::platform::Platform;
use kernel::prelude::*;

/// The vendor.
pub(super) struct Pkvm;

#[vtable]
impl Vendor for Pkvm {
    const PLATFORM: Platform = Platform::Pkvm;

    /// EL2 donates, shares and takes back single pages.
    const MAX_MAPPING_ORDER: u8 = 0;

    fn owns_mapped(mapped: &Mapped<'_>) -> bool {
        mapped.is_kept_from_host()
    }

    fn zero(page: GivenUp<'_>) -> Result<Written<'_>, Fatal> {
        page.zero_by_hypervisor()
    }

    fn migrate<'m>(from: Source<'m>, to: Destination<'m>) -> Result<Moved<'m>> {
        from.move_by_hypervisor(to)
    }
}
