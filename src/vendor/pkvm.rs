// SPDX-License-Identifier: GPL-2.0

//! pKVM: EL2 keeps page tables from the host, and pages of the guest with them.
//!
//! A page becomes the guest's when it is mapped for it, which `mmu_invalidate_seq` guards, so there
//! is nothing to do when the file hands it out. The guest shares it with the host, and takes it
//! back, by hypercalls to EL2. Conversion moves nothing: it makes the file say what EL2 says, and
//! is refused while that is something else. Contents are the host's to read and EL2's to zero: only
//! there are the question whose a page is, and the writing, one step.
//!
//! A guest that shares and unshares in exits to user space (`KVM_CAP_EXIT_HYPERCALL`) unshares
//! what the file says is private, and nothing else. Any other can take a page back between the
//! question and the use; what that costs it is in the documentation.

use super::Vendor;
use gmem_policy::{
    contract::Platform,
    request::Visibility, //
};
use gmem_sys::kvm::{
    mmu::Mapped,
    platform::{
        Fatal,
        GivenUp,
        Written, //
    }, //
};
use kernel::prelude::*;

/// The vendor.
pub(super) struct Pkvm;

#[vtable]
impl Vendor for Pkvm {
    const PLATFORM: Platform = Platform::Pkvm;

    fn owns_mapped(mapped: &Mapped<'_>) -> bool {
        mapped.is_kept_from_host()
    }

    /// EL2 donates, shares and takes back single pages.
    fn max_mapping_order(_of: Visibility) -> u8 {
        0
    }

    fn zero(page: GivenUp<'_>) -> Result<Written<'_>, Fatal> {
        page.zero_by_hypervisor()
    }
}
