// SPDX-License-Identifier: GPL-2.0

//! Stand-ins for platforms that the machine does not have: software models, and the platforms of
//! tests.
//!
//! They are in a layer above this one, and hook in by [`StandIn`], which they [`register`]. Kernels
//! without them do not contain this code.

use crate::{
    fs::inode::GmemInode,
    kvm::{
        hardware::{
            Entry,
            Failed,
            SeptQuestions, //
        },
        memslot::Memslot,
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::folio::Frame, //
};
use core::{
    ops::Range,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    }, //
};
use gmem_types::platform::{
    Base,
    Platform, //
};
use kernel::sync::SetOnce;

/// Platforms that the machine does not have.
///
/// The answers are trusted like those of hardware. The hooks report events that hardware would see
/// by itself.
pub(crate) trait StandIn: Sync {
    /// What implements its platforms.
    fn base(&self) -> Base;

    /// The platform of `vm`, if it is a stand-in of this kind.
    fn platform(&self, vm: &Vm) -> Option<Platform>;

    /// Whether its RMP can have pages as a guest's or firmware's.
    fn has_rmp(&self) -> bool;

    /// Looks a page up in its RMP; [`None`] for a page that it does not know.
    fn rmp_entry(&self, frame: &Frame<'_>) -> Option<Result<Entry, Failed>>;

    /// The questions about its S-EPTs.
    fn sept(&self) -> SeptQuestions;

    /// A file of `vm` is about to be made: from here on the VM's platform does not change.
    fn closes(&self, _vm: &Vm) {}

    /// A guest fault has the page of `gfn`, and has not mapped it yet. May sleep.
    fn has_pfn(&self, _vm: &Vm, _gfn: Gfn) {}

    /// An invalidation of gfns of `vm` is about to begin. May sleep.
    fn invalidates(&self, _vm: &Vm, _gfns: Range<u64>) {}

    /// An invalidation begins to take pages away, or has done so. Under `mmu_lock`.
    fn set_invalidating(&self, _vm: &Vm, _invalidating: bool) {}

    /// An invalidation of `gfns` in `slot`, which shows `inode`, ends. Under `mmu_lock`.
    fn settles(&self, _vm: &Vm, _inode: &GmemInode, _slot: &Memslot, _gfns: Range<u64>) {}

    /// A page is freed. Its platform has given it back, or the page is leaked.
    fn freed(&self, _frame: &Frame<'_>) {}
}

/// Whether this kernel can have stand-ins.
pub(crate) const POSSIBLE: bool = cfg!(any(
    CONFIG_KVM_GMEM_EMULATION,
    CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST
));

/// The stand-ins of one kind.
struct Known {
    stand_in: SetOnce<&'static dyn StandIn>,
    /// There can be VMs of this kind. Kinds without VMs are skipped, to keep faults fast.
    used: AtomicBool,
}

impl Known {
    const fn new() -> Self {
        Self {
            stand_in: SetOnce::new(),
            used: AtomicBool::new(false),
        }
    }

    #[inline]
    fn get(&self) -> Option<&'static dyn StandIn> {
        if !POSSIBLE || !self.used.load(Ordering::Acquire) {
            return None;
        }
        self.stand_in.as_ref().copied()
    }
}

static MODELS: Known = Known::new();
static TESTS: Known = Known::new();

fn known(base: Base) -> &'static Known {
    match base {
        Base::Model => &MODELS,
        _ => &TESTS,
    }
}

/// To be called for each kind before there is a VM of it; later calls undo
/// [`set_unused`].
pub(crate) fn register(stand_in: &'static dyn StandIn) {
    let known = known(stand_in.base());
    known.stand_in.populate(stand_in);
    known.used.store(true, Ordering::Release);
}

/// To be called when there are no VMs of a kind any more. There are none until the kind is
/// registered again.
#[cfg(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)]
pub(crate) fn set_unused(base: Base) {
    known(base).used.store(false, Ordering::Release);
}

/// Whether stand-ins are in use.
#[inline]
pub(crate) fn is_any() -> bool {
    POSSIBLE && (TESTS.used.load(Ordering::Acquire) || MODELS.used.load(Ordering::Acquire))
}

/// All stand-ins that are registered and in use.
///
/// Each fault and each freed page comes here, so this is not a loop.
#[inline]
pub(crate) fn all() -> impl Iterator<Item = &'static dyn StandIn> {
    TESTS.get().into_iter().chain(MODELS.get())
}
