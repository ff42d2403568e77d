// SPDX-License-Identifier: GPL-2.0

//! Converting a range of a file between private and shared, in place.
//!
//! Each step makes the value that the next one needs, so that none can be left out or come too
//! early. Up to step 9b every one of them can fail, and has changed nothing then but that host
//! mappings were dropped, which fault back. From 9c on nothing fails but the platform, and that
//! kills the VM. Dropping the values in reverse order ends the invalidation, then unlocks.
//!
//! # Lock order
//!
//! `mmap_lock` -> invalidate lock -> folio lock; `kvm->slots_lock` -> invalidate lock ->
//! `mmu_lock`. Bindings are changed under the invalidate lock *and* the bindings mutex, which is
//! inner to folio locks: memory failure comes with a locked folio, takes the mutex only, and
//! never waits for a conversion. `mmu_lock` is a spinlock.
//!
//! | lock | protects |
//! |---|---|
//! | invalidate lock, exclusive | writing the attribute map; folios leaving; bindings |
//! | invalidate lock, shared | from reading an attribute to having the folio locked (host) or made private (guest) |
//! | bindings mutex, or invalidate lock exclusive | which slots and files an invalidation walks |
//! | RCU | `is this gfn private?` anywhere else, checked again by `mmu_invalidate_seq` |
//! | `mmu_lock` | `mmu_invalidate_seq`, page tables |

use crate::{
    content,
    stats::{
        self,
        Held, //
    },
    vendor::Vendor, //
};
use gmem_policy::{
    contract::Refusal,
    plan::{
        Change,
        Differing,
        Plan, //
    },
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
    attribute_map::Reservation,
    fs::{
        address_space::{
            Busy,
            Exclusive,
            InvalidateGuard,
            Quiesced, //
        },
        file_ops::GmemFile, //
    },
    kvm::{
        mmu::{
            Dead,
            InvalidateSpan,
            Kinds, //
        },
        vm::Vm, //
    }, //
};
use kernel::prelude::*;

/// Why a request failed, and at which page if it is about one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) at: Option<PageIndex>,
}

impl Failure {
    /// A failure that `at` is to blame for.
    pub(crate) fn at(error: Error, at: PageIndex) -> Self {
        Self {
            error,
            at: Some(at),
        }
    }

    /// The platform does not do what is asked for, `at` being the first page for which that is so.
    pub(crate) fn refused(refusal: Refusal, at: PageIndex) -> Self {
        let error = match refusal {
            Refusal::NotSupported => EOPNOTSUPP,
            Refusal::NotShared => EPERM,
        };
        Self::at(error, at)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, at: None }
    }
}

/// What a request has done, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Pages that have changed between private and shared.
    pub(crate) converted: u64,
    /// In how many stretches they lie.
    pub(crate) runs: u64,
    /// Pages that were made zero.
    pub(crate) zeroed: u64,
    /// Pages that were scrambled.
    pub(crate) scrambled: u64,
}

/// Steps 4 to 12 of one KVM_SET_MEMORY_ATTRIBUTES2; `src/ioctl.rs` has those around.
///
/// # Errors
///
/// `EIO` for a dead VM, `EOPNOTSUPP`, `EPERM`, `ENOMEM`, `EAGAIN`, `EHWPOISON`, and `EIO` if the VM
/// dies. Nothing has changed then, except for the last.
pub(crate) fn convert<V: Vendor>(file: &GmemFile, request: &Request) -> Result<Outcome, Failure> {
    // 4. Attributes, folios and bindings are ours from here on.
    let guard = file.inode().lock();
    let held = Held::since_now();
    let result = convert_locked::<V>(file, &guard, request);
    stats::count(file.vm(), request, &result, &held);
    result
}

fn convert_locked<V: Vendor>(
    file: &GmemFile,
    guard: &InvalidateGuard<'_, Exclusive>,
    request: &Request,
) -> Result<Outcome, Failure> {
    if file.vm().is_dead() {
        return Err(EIO.into());
    }

    // 5 and 6. What is there to do, on which terms?
    let Some(change) = plan::<V>(file, guard, request)? else {
        return Ok(Outcome::default());
    };
    let (converted, runs) = change.count(guard);
    let mut outcome = Outcome {
        converted,
        runs,
        ..Outcome::default()
    };
    // 7. Room for the result.
    let reserved = Reserved::new(guard, &change)?;
    // 8. Nobody else holds the pages, and all that will be written can be.
    let quiet = reserved.quiesce(guard)?;
    content::check(guard, &change)?;

    // 9a. No guest gets a page of the range any more.
    let span = InvalidateSpan::begin(guard, change.range());
    // 9b and 9c. What only mmu_lock makes stable; then the old mappings go.
    let converting = quiet.zap::<V>(guard, &span)?;
    // 10. The platform gives up what becomes shared; contents.
    let converted = converting.apply::<V>(file.vm(), guard, &span, &mut outcome)?;
    // 11. Attributes.
    converted.commit();
    Ok(outcome)
    // 12. The span ends, then the lock is released.
}

fn plan<V: Vendor>(
    file: &GmemFile,
    guard: &InvalidateGuard<'_, Exclusive>,
    request: &Request,
) -> Result<Option<Change>, Failure> {
    let refused = |refusal| Failure::refused(refusal, request.range().start());

    let terms = match V::terms(file.vm(), request) {
        Ok(terms) if content::keeps_promise(request.content(), &terms) => terms,
        Ok(_) => return Err(refused(Refusal::NotSupported)),
        Err(refusal) => return Err(refused(refusal)),
    };
    match Plan::new(request, &terms, guard) {
        Plan::Nothing => Ok(None),
        Plan::Change(change) => {
            content::check_owned::<V>(file.vm(), guard, &change)?;
            Ok(Some(change))
        }
    }
}

/// The pages whose attribute changes, and that somebody could have mapped.
///
/// A type of its own, as the names of functions over nested adapters are too long for kallsyms.
#[derive(Clone)]
struct Affected<'c, 'g> {
    differing: Differing<'c, InvalidateGuard<'g, Exclusive>>,
    populated: Option<PageRange>,
}

impl<'c, 'g> Affected<'c, 'g> {
    fn new(guard: &'c InvalidateGuard<'g, Exclusive>, change: &Change) -> Self {
        Self {
            differing: change.differing(guard),
            populated: guard.populated(&change.range()),
        }
    }
}

impl Iterator for Affected<'_, '_> {
    type Item = PageRange;

    fn next(&mut self) -> Option<PageRange> {
        let populated = self.populated?;
        self.differing.find_map(|pages| pages.intersect(&populated))
    }
}

/// Step 7 is done.
struct Reserved<'g> {
    change: &'g Change,
    /// [`None`] if no attribute changes and only contents do.
    reservation: Option<Reservation<'g>>,
}

impl<'g> Reserved<'g> {
    fn new(guard: &'g InvalidateGuard<'_, Exclusive>, change: &'g Change) -> Result<Self, Failure> {
        let reservation = match change.store() {
            Some(range) => Some(
                guard
                    .reserve(&range, change.to())
                    .map_err(|error| Failure::at(error, change.range().start()))?,
            ),
            None => None,
        };
        Ok(Self {
            change,
            reservation,
        })
    }

    /// Only what becomes private has host mappings to lose.
    fn quiesce(self, guard: &'g InvalidateGuard<'_, Exclusive>) -> Result<Quiet<'g>, Failure> {
        let quiesced = match (self.change.to(), self.change.store()) {
            (Visibility::Private, Some(range)) => Some(
                guard
                    .quiesce(&range)
                    .map_err(|Busy(at)| Failure::at(EAGAIN, at))?,
            ),
            _ => None,
        };
        Ok(Quiet {
            change: self.change,
            reservation: self.reservation,
            quiesced,
        })
    }
}

/// Step 8 is done.
struct Quiet<'g> {
    change: &'g Change,
    reservation: Option<Reservation<'g>>,
    quiesced: Option<Quiesced<'g>>,
}

impl<'g> Quiet<'g> {
    fn zap<V: Vendor>(
        self,
        guard: &InvalidateGuard<'_, Exclusive>,
        span: &InvalidateSpan<'_>,
    ) -> Result<Converting<'g>, Failure> {
        content::check_mapped::<V>(guard, span, self.change)?;
        if self.change.changes_attributes() {
            // A private page that already is private keeps its mapping: on some platforms zapping
            // it would destroy it, on the others the guest would fault for nothing.
            let old = Kinds::Only(self.change.to().opposite());
            span.zap_pages(old, Affected::new(guard, self.change))
                .map_err(|Dead| {
                    let kept = span.first_kept(guard);
                    Failure::at(EIO, kept.unwrap_or(self.change.range().start()))
                })?;
        }
        Ok(Converting {
            change: self.change,
            reservation: self.reservation,
            quiesced: self.quiesced,
        })
    }
}

/// Step 9 is done; there is no way back.
struct Converting<'g> {
    change: &'g Change,
    reservation: Option<Reservation<'g>>,
    quiesced: Option<Quiesced<'g>>,
}

impl<'g> Converting<'g> {
    fn apply<V: Vendor>(
        self,
        vm: &Vm,
        guard: &InvalidateGuard<'_, Exclusive>,
        span: &InvalidateSpan<'_>,
        outcome: &mut Outcome,
    ) -> Result<Converted<'g>, Failure> {
        content::apply::<V>(vm, guard, span, self.change, outcome)?;
        Ok(Converted {
            reservation: self.reservation,
            quiesced: self.quiesced,
        })
    }
}

/// Step 10 is done.
struct Converted<'g> {
    reservation: Option<Reservation<'g>>,
    quiesced: Option<Quiesced<'g>>,
}

impl Converted<'_> {
    fn commit(self) {
        if let Some(reservation) = self.reservation {
            reservation.commit(self.quiesced);
        }
    }
}
