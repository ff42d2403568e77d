// SPDX-License-Identifier: GPL-2.0

//! SW_PROTECTED: private memory without hardware support, for tests.
//!
//! It owns no page: the host's kernel could write all of them, and guest_memfd makes sure that it
//! does not. No page has to be given up or taken back; only the contract has to be kept. Pages are
//! moved by copying.

use crate::platform::vendor::Vendor;
use gmem_sys::kvm::migrate::{
    Destination,
    Moved,
    Source, //
};
use gmem_types::platform::Platform;
use kernel::prelude::*;

/// The vendor.
pub(super) struct SwProtected;

#[vtable]
impl Vendor for SwProtected {
    const PLATFORM: Platform = Platform::SwProtected;

    fn migrate<'m>(from: Source<'m>, to: Destination<'m>) -> Result<Moved<'m>> {
        from.copy_to(to)
    }
}
