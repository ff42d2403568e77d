// SPDX-License-Identifier: GPL-2.0

//! What differs between platforms, and which one a VM is on.
//!
//! One file per vendor, with its [`Vendor`]. Adding one means that file, its rows in the contract
//! (`policy/contract.rs`), and an arm in [`select`]. The contract says what a promise means; vendors
//! state facts, and do what only they can.

use crate::{
    convert,
    outcome::{
        Failure,
        Outcome, //
    }, //
};
use gmem_policy::{
    contract::{
        self,
        capability_any, //
    },
    request::Request, //
};
use gmem_sys::{
    fs::{
        address_space::Stable,
        block::PrivateBlock,
        file::GmemFile,
        inode::GmemInode,
        page_cache::{
            PreparedFolio,
            PrivatePage, //
        }, //
    },
    kvm::{
        conversion::Done,
        hardware::{
            HardwareRmp,
            HardwareSept, //
        },
        migrate::{
            Destination,
            Moved,
            Source, //
        },
        platform::{
            self,
            Fatal, //
        },
        vcpu::can_map_memory,
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::folio::{
        Assignment,
        Frame, //
    },
    uapi::{
        CAP_ATTRIBUTES,
        CAP_FLAGS,
        CAP_GET,
        CAP_GUEST_MEMFD_FLAGS,
        CAP_MAP_MEMORY,
        CAP_PRE_LAUNCH_FLAGS,
        FLAG_LARGE_FOLIOS,
        FLAG_MIGRATABLE, //
    }, //
};
use gmem_types::{
    platform::{
        Base,
        Platform, //
    },
    visibility::Visibility, //
};
use kernel::prelude::*;

#[cfg(CONFIG_KVM_GMEM_EMULATION)]
use gmem_sys::emulation::{
    ModelRmp,
    ModelSept, //
};

mod pkvm;
mod snp;
mod sw_protected;
mod tdx;
#[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
mod tests;
pub(crate) mod vendor;

use self::{
    pkvm::Pkvm,
    snp::Snp,
    sw_protected::SwProtected,
    tdx::Tdx,
    vendor::Vendor, //
};

/// What a platform's vendor does, as a table.
struct Operations {
    convert: for<'f> fn(&'f GmemFile, &Request, &mut Outcome) -> Result<Done<'f>, Failure>,
    make_private: Option<fn(&Vm, Gfn, &PrivatePage<'_>) -> Result>,
    make_block_private: Option<fn(&Vm, Gfn, &PrivateBlock<'_>) -> Result>,
    populate: Option<fn(&Vm, Gfn) -> Result<Assignment>>,
    max_mapping_order: u8,
    migrate: Option<Migrate>,
}

/// Moves a page to other memory.
type Migrate = for<'m> fn(Source<'m>, Destination<'m>) -> Result<Moved<'m>>;

impl Operations {
    const fn of<V: Vendor>() -> Self {
        // What is given by a table can only be taken back by it.
        assert!(V::HAS_MAKE_SHARED == V::HAS_RECLAIM);
        assert!(V::HAS_MAKE_SHARED == V::HAS_POPULATE);
        assert!(V::HAS_MAKE_SHARED == V::HAS_OWNS);
        assert!(!V::HAS_MAKE_SHARED || V::HAS_MAKE_PRIVATE);
        // Only one of the two keeps the answer true on a platform.
        assert!(!(V::HAS_OWNS && V::HAS_OWNS_MAPPED));
        // Other platforms' private pages in use are mapped without it, and with their neighbours.
        assert!(!V::HAS_MAKE_PRIVATE || V::PLATFORM.owns_pages());
        // Which pages a platform has is known where a table has them, or if it is asked under `mmu_lock`.
        assert!(!V::HAS_MIGRATE || !V::HAS_MAKE_PRIVATE || V::HAS_OWNS || V::HAS_OWNS_MAPPED);
        // What is given as a block is taken back page by page, and mapped as it was given.
        assert!(!V::HAS_MAKE_BLOCK_PRIVATE || V::HAS_OWNS);
        assert!(V::HAS_MAKE_BLOCK_PRIVATE == V::PLATFORM.takes_blocks());

        Self {
            convert: convert::convert::<V>,
            make_private: if V::HAS_MAKE_PRIVATE {
                Some(V::make_private)
            } else {
                None
            },
            make_block_private: if V::HAS_MAKE_BLOCK_PRIVATE {
                Some(V::make_block_private)
            } else {
                None
            },
            populate: if V::HAS_POPULATE {
                Some(V::populate)
            } else {
                None
            },
            max_mapping_order: V::MAX_MAPPING_ORDER,
            migrate: if V::HAS_MIGRATE {
                Some(V::migrate)
            } else {
                None
            },
        }
    }
}

/// The vendor of a platform, if it is one of this configuration's.
fn select(platform: Option<Platform>) -> Option<&'static Operations> {
    const SW_PROTECTED: &Operations = &Operations::of::<SwProtected>();
    const SNP: &Operations = &Operations::of::<Snp<HardwareRmp>>();
    const TDX: &Operations = &Operations::of::<Tdx<HardwareSept>>();
    const PKVM: &Operations = &Operations::of::<Pkvm>();
    #[cfg(CONFIG_KVM_GMEM_EMULATION)]
    const SNP_MODEL: &Operations = &Operations::of::<Snp<ModelRmp>>();
    #[cfg(CONFIG_KVM_GMEM_EMULATION)]
    const TDX_MODEL: &Operations = &Operations::of::<Tdx<ModelSept>>();

    match platform? {
        Platform::SwProtected => Some(SW_PROTECTED),
        Platform::Snp(Base::Hardware) => Some(SNP),
        Platform::Tdx(Base::Hardware) => Some(TDX),
        Platform::Pkvm => Some(PKVM),
        #[cfg(CONFIG_KVM_GMEM_EMULATION)]
        Platform::Snp(Base::Model) => Some(SNP_MODEL),
        #[cfg(CONFIG_KVM_GMEM_EMULATION)]
        Platform::Tdx(Base::Model) => Some(TDX_MODEL),
        #[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
        Platform::Snp(Base::Test) => Some(tests::SNP),
        #[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
        Platform::Tdx(Base::Test) => Some(tests::TDX),
        #[cfg(not(all(CONFIG_KVM_GMEM_EMULATION, CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)))]
        Platform::Snp(_) | Platform::Tdx(_) => None,
    }
}

/// Whether the owner of a page of `inode` is recorded with the page.
///
/// On hardware, the architecture's code handles memory that is not converted in place, as before,
/// unless it can be moved. The models have no such code.
fn remembers(platform: Option<Platform>, inode: &GmemInode) -> bool {
    inode.converts_in_place()
        || inode.is_migratable()
        || platform.is_some_and(|on| on.base() == Base::Model)
}

/// Gives the page of a guest fault, which shows as `gfn`, to the platform if it is private.
///
/// Every guest fault comes here. VMs without a platform leave at the first check (hot path).
///
/// # Errors
///
/// What the platform returns.
#[inline]
pub(crate) fn make_private(
    platform: Option<Platform>,
    vm: &Vm,
    gfn: Gfn,
    stable: &Stable<'_>,
    folio: &PreparedFolio<'_>,
) -> Result {
    let vendor = match select(platform).map(|vendor| vendor.make_private) {
        Some(None) => return Ok(()),
        Some(vendor) => vendor,
        None => None,
    };
    let Some(page) = folio.as_private(stable) else {
        return Ok(());
    };
    match vendor {
        Some(make_private) if remembers(platform, stable.inode()) => make_private(vm, gfn, &page),
        _ => page.make_private(vm, gfn),
    }
}

/// Gives a block of a file, which shows from `gfn` on and of which no page is a platform's, to the
/// platform. If that fails nothing has changed, or the pages are lost: the page of the fault is given
/// alone then, which finds out.
pub(crate) fn make_block_private(
    platform: Option<Platform>,
    vm: &Vm,
    gfn: Gfn,
    inode: &GmemInode,
    block: &PrivateBlock<'_>,
) {
    if let Some(make) = select(platform).and_then(|vendor| vendor.make_block_private) {
        if remembers(platform, inode) {
            let _ = make(vm, gfn, block);
        }
    }
}

/// How large a mapping of pages that are `of` may be, as far as the platform is concerned, of memory
/// that allows 2 to the power of `order` pages.
#[inline]
pub(crate) fn max_mapping_order(platform: Option<Platform>, of: Visibility, order: u8) -> u8 {
    select(platform).map_or(order, |vendor| {
        if of == Visibility::Private && vendor.make_block_private.is_some() {
            return order;
        }
        order.min(vendor.max_mapping_order)
    })
}

/// How pages of VMs on a platform are moved; [`None`] if they cannot be. Those of VMs without private
/// memory are the host's.
fn mover(platform: Option<Platform>) -> Option<Migrate> {
    match platform {
        None => Some(|from, to| from.copy_to(to)),
        Some(_) => select(platform)?.migrate,
    }
}

/// Whether files of a VM can have pages that move; without one, whether those of some VM can here.
fn can_move(vm: Option<&Vm>) -> bool {
    match vm {
        Some(vm) => platform::can_move(vm) && mover(platform::of(vm)).is_some(),
        None => platform::CAN_MOVE,
    }
}

/// Whether files of a VM can have large folios; without one, whether those of some VM can here.
fn has_large_folios(vm: Option<&Vm>) -> bool {
    match vm {
        Some(vm) => platform::has_large_folios(vm),
        None => platform::can_have_large_folios(),
    }
}

/// The flags that KVM_CREATE_GUEST_MEMFD takes; without a VM, those that some VM takes here.
pub(crate) fn supported_flags(vm: Option<&Vm>) -> u64 {
    let migratable = if can_move(vm) { FLAG_MIGRATABLE } else { 0 };
    let large = if has_large_folios(vm) {
        FLAG_LARGE_FOLIOS
    } else {
        0
    };

    Vm::supported_flags(vm) | migratable | large
}

/// Moves a page to other memory.
///
/// # Errors
///
/// What the vendor returns, `EOPNOTSUPP` without one.
pub(crate) fn migrate<'m>(
    platform: Option<Platform>,
    from: Source<'m>,
    to: Destination<'m>,
) -> Result<Moved<'m>> {
    mover(platform).ok_or(EOPNOTSUPP)?(from, to)
}

/// To whom a page is given when it is populated, if that is to be recorded.
///
/// # Errors
///
/// What the platform returns.
pub(crate) fn populate(file: &GmemFile, gfn: Gfn) -> Result<Option<Assignment>> {
    let platform = file.platform();

    match select(platform).and_then(|vendor| vendor.populate) {
        Some(populate) if remembers(platform, file.inode()) => Ok(Some(populate(file.vm(), gfn)?)),
        _ => Ok(None),
    }
}

/// Takes a page back from its platform when the page is freed. If that fails, the page is leaked.
pub(crate) fn reclaim(frame: &Frame<'_>) {
    if frame.assignment().is_none() {
        return;
    }
    #[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
    if tests::reclaim(frame) {
        return;
    }
    #[cfg(CONFIG_KVM_GMEM_EMULATION)]
    let reclaimed = if frame.is_model() {
        Snp::<ModelRmp>::reclaim(frame)
    } else {
        Snp::<HardwareRmp>::reclaim(frame)
    };
    #[cfg(not(CONFIG_KVM_GMEM_EMULATION))]
    let reclaimed = Snp::<HardwareRmp>::reclaim(frame);

    if let Err(Fatal) = reclaimed {
        frame.leak();
    }
}

/// Converts, with the vendor of the file's platform. On success `outcome` says what the request has
/// done.
///
/// # Errors
///
/// See [`convert::convert`].
pub(crate) fn convert<'f>(
    file: &'f GmemFile,
    request: &Request,
    outcome: &mut Outcome,
) -> Result<Done<'f>, Failure> {
    match select(file.platform()) {
        Some(vendor) => (vendor.convert)(file, request, outcome),
        None => Err(EINVAL.into()),
    }
}

/// Returns the value of a capability; [`None`] for one that is not of guest_memfd.
///
/// Without a VM, returns what some VM supports here.
pub(crate) fn capability(vm: Option<&Vm>, cap: u64) -> Option<i32> {
    // For any memory, on any VM.
    if cap == CAP_MAP_MEMORY {
        return Some(can_map_memory().into());
    }
    if cap == CAP_GUEST_MEMFD_FLAGS {
        return i32::try_from(supported_flags(vm)).ok();
    }
    let on = vm.and_then(platform::of);
    let supported = match vm {
        Some(_) => on.is_some(),
        None => Platform::ALL.iter().copied().any(platform::is_available),
    };
    let value = match cap {
        // CAST: One bit, far below the sign.
        CAP_ATTRIBUTES => Visibility::Private.attributes() as u32,
        CAP_FLAGS | CAP_PRE_LAUNCH_FLAGS => match on {
            Some(platform) => contract::capability(platform),
            None => capability_any(platform::is_available),
        },
        CAP_GET => 1,
        _ => return None,
    };
    if !supported {
        return Some(0);
    }
    i32::try_from(value).ok()
}
