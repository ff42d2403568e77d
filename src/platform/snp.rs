// SPDX-License-Identifier: GPL-2.0

//! SEV-SNP: pages of the guest are encrypted, and assigned to it in the RMP.
//!
//! RMPUPDATE does not check the previous state of an entry: assigning a page of another guest takes
//! it away from that guest without an error. So each transition looks the entry up first, and this
//! file records with the page to whom it was assigned. If the page is assigned to the same guest at
//! the same place, this is a guest fault after a zap, and there is nothing to do. If it is assigned
//! otherwise, this is a bug or an attack, and the fault is refused.
//!
//! A page is assigned when the guest first uses it as private, not when it is converted. If none of
//! its block is assigned yet, all of it is, by one entry for 2M. Such an entry is split before one of
//! its pages is taken back or moved; the others stay the guest's, as they were.
//!
//! A page is taken back when it is converted to shared, or freed. Then it is no longer recorded that
//! the guest had accepted the page. This cannot be restored, so a request cannot be undone after its
//! first page. A page that cannot be taken back is lost, together with the VM.
//!
//! A page that is assigned is moved to other memory by the platform, any other by a copy.

use crate::platform::vendor::Vendor;
use core::marker::PhantomData;
use gmem_sys::{
    fs::{
        block::PrivateBlock,
        page_cache::PrivatePage, //
    },
    kvm::{
        hardware::{
            Rmp,
            Unsplit, //
        },
        migrate::{
            Destination,
            Moved,
            Source, //
        },
        platform::Fatal,
        vm::{
            Gfn,
            Vm, //
        }, //
    },
    mm::folio::{
        Assignment,
        FolioRef,
        Frame, //
    },
    trace, //
};
use gmem_types::platform::Platform;
use kernel::prelude::*;

/// The vendor, over any implementation of the RMP.
pub(super) struct Snp<R: Rmp>(PhantomData<R>);

#[vtable]
impl<R: Rmp> Vendor for Snp<R> {
    const PLATFORM: Platform = Platform::Snp(R::BASE);

    /// KVM maps unassigned pages one by one (`sev_gmem_max_mapping_level()`), and others as large as
    /// their entry is.
    const MAX_MAPPING_ORDER: u8 = 0;

    fn owns(_vm: &Vm, folio: &FolioRef<'_>) -> Result<bool> {
        Ok(R::lookup(&folio.frame())?.assigned)
    }

    fn make_private(vm: &Vm, gfn: Gfn, page: &PrivatePage<'_>) -> Result {
        let frame = page.frame();
        let to = Self::populate(vm, gfn)?;
        let entry = R::lookup(&frame)?;

        if !entry.assigned {
            return Undo::<R>::assign(Given::Page(page), to)?.keep();
        }
        if frame.assignment() == Some(to) {
            return Ok(());
        }
        trace::rmp_refusal(|| {
            let known = frame.assignment();
            let (gfn, asid) = known.map_or((0, 0), |known| (known.gfn.get(), known.asid));
            let pfn = frame.pfn().get();
            (pfn, to.gfn.get(), to.asid, known.is_some(), gfn, asid)
        });
        Err(EEXIST)
    }

    fn make_block_private(vm: &Vm, gfn: Gfn, block: &PrivateBlock<'_>) -> Result {
        let to = Self::populate(vm, gfn)?;

        for frame in block.frames() {
            if R::lookup(&frame)?.assigned {
                return Err(EEXIST);
            }
        }
        Undo::<R>::assign(Given::Block(block), to)?.keep()
    }

    fn populate(vm: &Vm, gfn: Gfn) -> Result<Assignment> {
        Ok(Assignment {
            gfn,
            asid: R::asid(vm)?,
        })
    }

    fn make_shared(folio: &FolioRef<'_>) -> Result<(), Fatal> {
        take_back::<R>(&folio.frame())
    }

    fn migrate<'m>(from: Source<'m>, to: Destination<'m>) -> Result<Moved<'m>> {
        if !from.is_given() {
            return from.copy_to(to);
        }
        // Firmware moves a page that has an entry of its own. If there is none, the page stays.
        if R::lookup(&from.frame())?.large {
            split::<R>(&from.frame()).map_err(|Fatal| EBUSY)?;
        }
        from.relocate_to::<R>(to)
    }

    fn reclaim(frame: &Frame<'_>) -> Result<(), Fatal> {
        take_back::<R>(frame)
    }
}

/// What one RMPUPDATE assigns.
enum Given<'p> {
    /// A page, by an entry of its own.
    Page(&'p PrivatePage<'p>),
    /// A block, by one entry.
    Block(&'p PrivateBlock<'p>),
}

impl Given<'_> {
    /// Calls `f` with each page, and its place among the others.
    fn each(&self, mut f: impl FnMut(u64, &Frame<'_>) -> Result) -> Result {
        match self {
            Self::Page(page) => f(0, &page.frame()),
            Self::Block(block) => (0..)
                .zip(block.frames())
                .try_for_each(|(at, frame)| f(at, &frame)),
        }
    }
}

/// What has just been assigned. Dropping it takes that back: these pages and no others, as the
/// neighbours may be another guest's, and by an update of the same size.
struct Undo<'p, R: Rmp> {
    given: Given<'p>,
    to: Assignment,
    _rmp: PhantomData<R>,
}

impl<'p, R: Rmp> Undo<'p, R> {
    fn assign(given: Given<'p>, to: Assignment) -> Result<Self> {
        match given {
            Given::Page(page) => R::assign(page, to.gfn, to.asid)?,
            Given::Block(block) => R::assign_block(block, to.gfn, to.asid)?,
        }
        Ok(Self {
            given,
            to,
            _rmp: PhantomData,
        })
    }

    /// Records with each page to whom it was assigned. It cannot be undone after that.
    fn keep(self) -> Result {
        let Assignment { gfn, asid } = self.to;
        self.given.each(|at, frame| {
            let gfn = Gfn::new(gfn.get() + at);
            frame.record(Assignment { gfn, asid })
        })?;
        core::mem::forget(self);
        Ok(())
    }
}

impl<R: Rmp> Drop for Undo<'_, R> {
    fn drop(&mut self) {
        let undone = match self.given {
            Given::Page(page) => R::unassign(&page.frame()),
            Given::Block(block) => R::unassign_block(block),
        };
        let _ = self.given.each(|_, frame| {
            frame.forget();
            if undone.is_err() {
                frame.leak();
            }
            Ok(())
        });
    }
}

/// Takes a page back, if it was given.
fn take_back<R: Rmp>(frame: &Frame<'_>) -> Result<(), Fatal> {
    let entry = R::lookup(frame).map_err(|_| Fatal)?;

    if entry.assigned {
        if entry.large {
            split::<R>(frame)?;
        }
        R::unassign(frame).map_err(|_| Fatal)?;
    }
    frame.forget();
    Ok(())
}

/// Splits the entry for 2M that a page is in. An update of the page alone would overlap with an
/// entry that was not split.
fn split<R: Rmp>(frame: &Frame<'_>) -> Result<(), Fatal> {
    /// Far more than any change of an entry takes.
    const TRIES: u32 = 1000;

    for _ in 0..TRIES {
        match R::smash(frame) {
            Ok(()) => return Ok(()),
            Err(Unsplit::InUse) => core::hint::spin_loop(),
            Err(Unsplit::Failed) => break,
        }
    }
    // Another CPU may have split it meanwhile.
    match R::lookup(frame) {
        Ok(entry) if !entry.large => Ok(()),
        _ => Err(Fatal),
    }
}
