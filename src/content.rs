// SPDX-License-Identifier: GPL-2.0

//! Applying a content policy to folios.
//!
//! Only allocated folios, those that were used, are ever touched: an untouched one holds stale
//! bytes of the host and reads as zeroes at its first use, whatever the policy.

use crate::convert::Failure;
use gmem_policy::{
    content::{
        Action,
        Content,
        SCRAMBLE_BYTE, //
    },
    contract::Terms,
    plan::{
        query,
        Change, //
    },
    range::PageRange, //
};
use gmem_sys::{
    fs::address_space::{
        Exclusive,
        InvalidateGuard, //
    },
    kvm::mmu::InvalidateSpan,
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

/// Calls `f` for each allocated folio of the change's range that has something to be done to it.
fn for_each_folio<E>(
    guard: &InvalidateGuard<'_, Exclusive>,
    change: &Change,
    mut f: impl FnMut(&FolioRef<'_>, Action) -> Result<(), E>,
) -> Result<(), E> {
    if change.terms().changing == Action::Leave && change.terms().settled == Action::Leave {
        return Ok(());
    }
    let geometry = guard.inode().geometry();
    let mut rest = guard.populated(&change.range());

    while let Some(range) = rest {
        let run = query(range.start(), &geometry, guard);
        // The map covers the file; should it not, what is left counts as about to change.
        let piece = run.range.intersect(&range).unwrap_or(range);
        let action = change.action_for(run.visibility != change.to());

        if action != Action::Leave {
            let mut folios = guard.folios(&piece);
            while let Some(batch) = folios.next_batch() {
                for folio in batch.filter(|folio| folio.is_allocated()) {
                    f(&folio, action)?;
                }
            }
        }
        rest = PageRange::new(piece.end(), range.end());
    }
    Ok(())
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
    for_each_folio(guard, change, |folio, _| {
        if folio.is_poisoned() {
            return Err(Failure::at(EHWPOISON, folio.pages().start()));
        }
        Ok(())
    })
}

/// Does to the contents what the policy says.
///
/// To be called when the mappings that go away are gone and the attributes still are the old ones,
/// which is what the span stands for: nobody can look at a page half way.
pub(crate) fn apply(
    guard: &InvalidateGuard<'_, Exclusive>,
    _span: &InvalidateSpan<'_>,
    change: &Change,
) {
    let done: Result<(), core::convert::Infallible> =
        for_each_folio(guard, change, |folio, action| {
            match action {
                Action::Leave => {}
                Action::Zero => folio.zero(),
                Action::Scramble => folio.fill(SCRAMBLE_BYTE),
            }
            Ok(())
        });
    match done {
        Ok(()) => {}
        Err(never) => match never {},
    }
}
