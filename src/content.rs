// SPDX-License-Identifier: GPL-2.0

//! Applying a content policy to folios.
//!
//! Only allocated folios, those that were used, are ever touched: an untouched one holds stale
//! bytes of the host and reads as zeroes at its first use, whatever the policy.

use crate::{
    convert::{
        Failure,
        Outcome, //
    },
    vendor::Vendor, //
};
use gmem_policy::{
    content::{
        Action,
        Content,
        SCRAMBLE_BYTE, //
    },
    contract::{
        page,
        Refusal,
        Terms, //
    },
    plan::{
        query,
        Change, //
    },
    range::PageRange,
    request::Visibility, //
};
use gmem_sys::{
    fs::address_space::{
        Exclusive,
        InvalidateGuard, //
    },
    kvm::{
        mmu::InvalidateSpan,
        platform::{
            self,
            Fatal,
            GivenUp,
            Kind, //
        },
        vm::Vm, //
    },
    mm::folio::FolioRef, //
};
use kernel::prelude::*;

/// Whether the terms that a vendor accepts keep what was asked for.
///
/// They come from the contract, or from a vendor that knows more. Neither is trusted to give less
/// than was promised: ZERO zeroes, and PRESERVE leaves alone what it changes.
pub(crate) fn keeps_promise(content: Content, terms: &Terms) -> bool {
    let kept = |action| match content {
        Content::Zero => action == Action::Zero,
        Content::Preserve => action == Action::Leave,
        Content::None => true,
    };
    kept(terms.changing) && kept(terms.settled)
}

/// Calls `f` for each allocated folio of the change's range that there is work with: `work` tells
/// by whether the folio's attribute changes.
fn for_each_folio<E>(
    guard: &InvalidateGuard<'_, Exclusive>,
    change: &Change,
    work: impl Fn(bool) -> bool,
    mut f: impl FnMut(&FolioRef<'_>, bool) -> Result<(), E>,
) -> Result<(), E> {
    if !work(true) && !work(false) {
        return Ok(());
    }
    let geometry = guard.inode().geometry();
    let mut rest = guard.populated(&change.range());

    while let Some(range) = rest {
        let run = query(range.start(), &geometry, guard);
        // The map covers the file; should it not, what is left counts as about to change.
        let piece = run.range.intersect(&range).unwrap_or(range);
        let changes = run.visibility != change.to();

        if work(changes) {
            let mut folios = guard.folios(&piece);
            while let Some(batch) = folios.next_batch() {
                for folio in batch.filter(|folio| folio.is_allocated()) {
                    f(&folio, changes)?;
                }
            }
        }
        rest = PageRange::new(piece.end(), range.end());
    }
    Ok(())
}

/// How the platform is in the way of the promise for a page that it owns: only if it is, is it
/// worth asking about each.
fn minds_owned<V: Vendor>(change: &Change) -> Option<Refusal> {
    let request = change.request();
    page(V::PLATFORM, request.to(), request.content(), true).err()
}

/// Step 6 for each page: refuses a promise that the platform does not keep for one that it owns.
///
/// # Errors
///
/// `EOPNOTSUPP` or `EPERM` with the first such page.
pub(crate) fn check_owned<V: Vendor>(
    vm: &Vm,
    guard: &InvalidateGuard<'_, Exclusive>,
    change: &Change,
) -> Result<(), Failure> {
    if !V::HAS_OWNS {
        return Ok(());
    }
    let Some(refusal) = minds_owned::<V>(change) else {
        return Ok(());
    };
    for_each_folio(
        guard,
        change,
        |_| true,
        |folio, _| {
            let at = folio.pages().start();
            match V::owns(vm, folio) {
                Ok(false) => Ok(()),
                // What cannot be told is no ground to promise anything on.
                Ok(true) | Err(_) => Err(Failure::refused(refusal, at)),
            }
        },
    )
}

/// Step 9b: the same for platforms where only an invalidation keeps the answer true.
///
/// Asked also where all is well with owned pages: of one that is given up it matters later that it
/// was owned.
///
/// # Errors
///
/// `EOPNOTSUPP` or `EPERM` with the first such page.
pub(crate) fn check_mapped<V: Vendor>(
    guard: &InvalidateGuard<'_, Exclusive>,
    span: &InvalidateSpan<'_>,
    change: &Change,
) -> Result<(), Failure> {
    let minds = minds_owned::<V>(change);

    if !V::HAS_OWNS_MAPPED || minds.is_none() && change.to() == Visibility::Private {
        return Ok(());
    }
    span.ask(guard, |mapped| match (V::owns_mapped(mapped), minds) {
        (true, Some(refusal)) => Err(Failure::refused(refusal, mapped.folio().pages().start())),
        _ => Ok(()),
    })
}

/// Refuses to touch memory that has failed.
///
/// # Errors
///
/// `EHWPOISON` with the first poisoned page whose contents the policy would write.
pub(crate) fn check(
    guard: &InvalidateGuard<'_, Exclusive>,
    change: &Change,
) -> Result<(), Failure> {
    for_each_folio(
        guard,
        change,
        |changes| change.action_for(changes) != Action::Leave,
        |folio, _| {
            if folio.is_poisoned() {
                return Err(Failure::at(EHWPOISON, folio.pages().start()));
            }
            Ok(())
        },
    )
}

/// Step 10: has the platform give up the pages that become shared, and does to the contents what
/// the policy says.
///
/// To be called when the mappings that go away are gone and the attributes still are the old ones,
/// which is what the span stands for: nobody can look at a page half way.
///
/// # Errors
///
/// `EIO` with a page that the platform did not give up, or not zero. That page is lost, and the VM
/// dead.
pub(crate) fn apply<V: Vendor>(
    vm: &Vm,
    guard: &InvalidateGuard<'_, Exclusive>,
    span: &InvalidateSpan<'_>,
    change: &Change,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let owns_pages = platform::kind(vm).is_some_and(Kind::owns_pages);
    let leaves = |changes| changes && owns_pages && change.to() == Visibility::Shared;
    let action = |changes| change.action_for(changes);

    for_each_folio(
        guard,
        change,
        |changes| leaves(changes) || action(changes) != Action::Leave,
        |folio, changes| {
            let given_up = if V::HAS_MAKE_SHARED && leaves(changes) {
                V::make_shared(folio)
            } else {
                Ok(())
            };
            // Whatever the vendor says: the host writes no page that a platform has.
            given_up
                .and_then(|()| span.given_up(folio))
                .and_then(|page| write::<V>(page, action(changes), outcome))
                .map_err(|Fatal| {
                    span.lose(folio);
                    Failure::at(EIO, folio.pages().start())
                })
        },
    )
}

/// Does to the bytes of a page what the policy says.
fn write<V: Vendor>(
    page: GivenUp<'_, '_>,
    action: Action,
    outcome: &mut Outcome,
) -> Result<(), Fatal> {
    match action {
        Action::Leave => Ok(()),
        Action::Zero => {
            outcome.zeroed += 1;
            if V::HAS_ZERO {
                V::zero(page)
            } else {
                page.zero()
            }
        }
        Action::Scramble => {
            outcome.scrambled += 1;
            page.fill(SCRAMBLE_BYTE)
        }
    }
}
