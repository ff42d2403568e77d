// SPDX-License-Identifier: GPL-2.0

//! Questions to a vendor about folios, and carrying out a content policy on them.

use crate::{
    outcome::{
        errno,
        Outcome, //
    },
    platform::vendor::Vendor, //
};
use gmem_policy::{
    contract::{
        self,
        Refusal, //
    },
    request::Request, //
};
use gmem_sys::{
    kvm::{
        mmu::Mapped,
        platform::{
            Fatal,
            GivenUp,
            Written, //
        },
        vm::Vm, //
    },
    mm::folio::FolioRef, //
};
use gmem_types::{
    content::{
        Action,
        SCRAMBLE_BYTE, //
    },
    visibility::Visibility, //
};
use kernel::prelude::*;

/// Returns why the request is refused if the platform owns a page of it. If it returns [`None`],
/// the pages need not be checked one by one.
fn minds_owned<V: Vendor>(request: &Request) -> Option<Refusal> {
    contract::action(V::PLATFORM, true, request.to(), request.content()).err()
}

/// Step 6 for each page: refuses a promise that the platform does not keep for pages that it owns.
///
/// The errors are `EOPNOTSUPP` and `EPERM`.
pub(crate) fn owned<'v, V: Vendor>(
    vm: &'v Vm,
    request: &Request,
) -> Option<impl FnMut(&FolioRef<'_>) -> Result + 'v> {
    let refusal = minds_owned::<V>(request).filter(|_| V::HAS_OWNS)?;

    Some(move |folio: &FolioRef<'_>| {
        // A page whose owner is not known counts as owned.
        if V::HAS_OWNS && V::owns(vm, folio) != Ok(false) {
            return Err(errno(refusal));
        }
        Ok(())
    })
}

/// Step 9b: the same for platforms where only an invalidation keeps the answer true.
///
/// The question is also asked where owned pages are accepted: step 10 has to know whether a page
/// that was given up was owned.
pub(crate) fn mapped<V: Vendor>(request: &Request) -> Option<impl FnMut(&Mapped<'_>) -> Result> {
    let minds = minds_owned::<V>(request);

    if !V::HAS_OWNS_MAPPED || minds.is_none() && request.to() == Visibility::Private {
        return None;
    }
    Some(move |mapped: &Mapped<'_>| {
        let owns = V::HAS_OWNS_MAPPED && V::owns_mapped(mapped);
        match minds {
            Some(refusal) if owns => Err(errno(refusal)),
            _ => Ok(()),
        }
    })
}

/// Step 10: makes the platform give up a page that becomes shared.
///
/// # Errors
///
/// [`Fatal`], as the vendor says.
pub(crate) fn make_shared<V: Vendor>(folio: &FolioRef<'_>) -> Result<(), Fatal> {
    if V::HAS_MAKE_SHARED {
        V::make_shared(folio)
    } else {
        Ok(())
    }
}

/// Step 10: carries out the policy on the bytes of a page.
///
/// # Errors
///
/// [`Fatal`] if that fails.
pub(crate) fn write<'f, V: Vendor>(
    page: GivenUp<'f>,
    action: Action,
    outcome: &mut Outcome,
) -> Result<Written<'f>, Fatal> {
    match action {
        Action::Zero => {
            outcome.zeroed += page.pages();
            if V::HAS_ZERO {
                V::zero(page)
            } else {
                page.zero()
            }
        }
        Action::Scramble => {
            outcome.scrambled += page.pages();
            page.scramble(SCRAMBLE_BYTE)
        }
        // Not called for this action.
        Action::Leave => Err(Fatal),
    }
}
