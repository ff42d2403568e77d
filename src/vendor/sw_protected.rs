// SPDX-License-Identifier: GPL-2.0

//! SW_PROTECTED: private memory without hardware behind it, for tests.
//!
//! It owns no page, so that the host could write all of them. That it does not is up to the file.
//! There is nothing to give up or to take; only contents have to be what was promised.

use super::Vendor;
use gmem_policy::contract::Platform;
use kernel::prelude::*;

/// The vendor.
pub(super) struct SwProtected;

#[vtable]
impl Vendor for SwProtected {
    const PLATFORM: Platform = Platform::SwProtected;
}
