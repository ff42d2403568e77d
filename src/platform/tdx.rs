// SPDX-License-Identifier: GPL-2.0

//! TDX: pages of the guest are encrypted, and in its S-EPT, which the TDX module keeps.
//!
//! KVM's page tables are mirrored into the S-EPT, so a page becomes the guest's when it is mapped
//! and the host's when it is zapped. This file only has to know which pages are in the S-EPT:
//! taking such a page out destroys its contents. So the platform moves such a page to other memory,
//! and any other is copied.

use crate::platform::vendor::Vendor;
use core::marker::PhantomData;
use gmem_sys::{
    fs::page_cache::PrivatePage,
    kvm::{
        hardware::Sept,
        migrate::{
            Destination,
            Moved,
            Source, //
        },
        mmu::Mapped,
        vm::{
            Gfn,
            Vm, //
        }, //
    }, //
};
use gmem_types::platform::Platform;
use kernel::prelude::*;

/// The vendor, over any implementation of the S-EPT.
pub(super) struct Tdx<S: Sept>(PhantomData<S>);

#[vtable]
impl<S: Sept> Vendor for Tdx<S> {
    const PLATFORM: Platform = Platform::Tdx(S::BASE);

    fn owns_mapped(mapped: &Mapped<'_>) -> bool {
        mapped.is_in_sept()
    }

    fn make_private(vm: &Vm, gfn: Gfn, page: &PrivatePage<'_>) -> Result {
        Ok(S::prepare(vm, gfn, &page.frame())?)
    }

    fn migrate<'m>(from: Source<'m>, to: Destination<'m>) -> Result<Moved<'m>> {
        from.move_in_sept(to)
    }
}
