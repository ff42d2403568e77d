// SPDX-License-Identifier: GPL-2.0

//! What differs between platforms, and which one a VM is on.
//!
//! One file per vendor. Adding one means that file, its row in the contract
//! (`policy/contract.rs`), and an arm in [`platform`] and [`convert`].

use crate::convert::{
    self,
    Failure, //
};
use gmem_policy::{
    contract::{
        capability as flags,
        capability_any,
        terms,
        Phase,
        Platform,
        Refusal,
        Terms, //
    },
    plan::Change,
    range::{
        PageIndex,
        PageRange, //
    },
    request::{
        Request,
        Visibility, //
    }, //
};
use gmem_sys::{
    export::scramble,
    fs::{
        address_space::Stable,
        file_ops::GmemFile, //
    },
    kvm::vm::{
        self,
        Gfn,
        Vm, //
    },
    mm::folio::LockedFolio, //
};
use kernel::{
    error::VTABLE_DEFAULT_ERROR,
    prelude::*, //
};

mod sw_protected;

/// A platform's part in a conversion.
#[vtable]
pub(crate) trait Vendor {
    /// The rows of the contract that are its.
    const PLATFORM: Platform;

    /// Whether the VM is launched.
    fn phase(vm: &Vm) -> Phase;

    /// Step 6: on which terms the platform does what is asked for. Called with the invalidate lock
    /// held exclusively.
    ///
    /// # Errors
    ///
    /// [`Refusal`], for the whole request.
    fn terms(vm: &Vm, request: &Request) -> Result<Terms, Refusal> {
        terms(
            Self::PLATFORM,
            Self::phase(vm),
            request.to(),
            request.content(),
            scramble(),
        )
    }

    /// Step 9b: whether it can be done for these pages of the file, in the state in which only
    /// `mmu_lock` keeps them. Called with it held, once for each bound piece of the range.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` or `EPERM`, with the first page for which it cannot.
    fn supports_pages(_vm: &Vm, _change: &Change, _pages: &PageRange) -> Result<(), Failure> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The platform that a VM is on, if its memory can be converted in place.
pub(crate) fn platform(vm: &Vm) -> Option<Platform> {
    vm.is_sw_protected().then_some(Platform::SwProtected)
}

/// Gives the page at `at`, which shows as `gfn`, to the platform if it is private.
///
/// SW_PROTECTED owns no page, so that nothing has to be given. What VMs do whose memory is not
/// converted in place is up to the architecture, as ever.
///
/// # Errors
///
/// What the platform returns.
pub(crate) fn make_private(
    vm: &Vm,
    gfn: Gfn,
    at: PageIndex,
    stable: &Stable<'_>,
    folio: &LockedFolio<'_>,
) -> Result {
    match platform(vm) {
        Some(Platform::SwProtected) => Ok(()),
        None if stable.visibility(at) == Visibility::Private => folio.make_private(vm, gfn),
        None => Ok(()),
    }
}

/// Converts, with the vendor of the file's VM.
///
/// # Errors
///
/// See [`convert::convert`].
pub(crate) fn convert(file: &GmemFile, request: &Request) -> Result<(), Failure> {
    match platform(file.vm()) {
        Some(Platform::SwProtected) => convert::convert::<sw_protected::SwProtected>(file, request),
        None => Err(EINVAL.into()),
    }
}

/// `KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES`.
const CAP_ATTRIBUTES: u64 = 252;
/// `KVM_CAP_MEMORY_ATTRIBUTES2_FLAGS`.
const CAP_FLAGS: u64 = 0x10000;
/// `KVM_CAP_MEMORY_ATTRIBUTES2_PRE_LAUNCH_FLAGS`.
const CAP_PRE_LAUNCH_FLAGS: u64 = 0x10001;
/// `KVM_CAP_GET_MEMORY_ATTRIBUTES2`.
const CAP_GET: u64 = 0x10002;

/// The value of a capability; [`None`] for one that is not ours.
///
/// Asked without a VM, what some VM here supports.
pub(crate) fn capability(vm: Option<&Vm>, cap: u64) -> Option<i32> {
    let supported = match vm {
        Some(vm) => platform(vm).is_some(),
        None => vm::has_sw_protected(),
    };
    let policies = |phase| match vm.and_then(platform) {
        Some(platform) => flags(platform, phase),
        None => capability_any(phase),
    };
    let value = match cap {
        // CAST: One bit, far below the sign.
        CAP_ATTRIBUTES => Visibility::Private.attributes() as u32,
        CAP_FLAGS => policies(Phase::PostLaunch),
        CAP_PRE_LAUNCH_FLAGS => policies(Phase::PreLaunch),
        CAP_GET => 1,
        _ => return None,
    };
    if !supported {
        return Some(0);
    }
    i32::try_from(value).ok()
}
