// SPDX-License-Identifier: GPL-2.0

//! Converting a range of a file between private and shared, in place.
//!
//! Each step makes the value that the next one consumes, so that no step can be left out or come
//! too early. Up to step 9b each step can fail, also because the task is being killed. Nothing has
//! changed then, except that host mappings were dropped, which fault back. From step 9c on only the
//! platform can fail, and that kills the VM.
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
    outcome::{
        errno,
        Failure,
        Outcome, //
    },
    platform::vendor::Vendor,
    stats::{
        self,
        Held, //
    }, //
};
use gmem_policy::request::Request;
use gmem_sys::{
    fs::{
        address_space::Refused,
        file::GmemFile, //
    },
    kvm::{
        conversion::{
            Done,
            Planning,
            Turn, //
        },
        vm::Vm, //
    }, //
};
use kernel::prelude::*;

/// Carries out steps 4 to 12 of one KVM_SET_MEMORY_ATTRIBUTES2; `src/ioctl.rs` has the others. On
/// success `outcome` has what the request has done.
///
/// # Errors
///
/// `EINTR` if the task is being killed, `EIO` for a dead VM, `EOPNOTSUPP`, `EPERM`, `ENOMEM`,
/// `EAGAIN`, `EHWPOISON`, and `EIO` if the VM dies. Nothing has changed then, except for the last.
pub(crate) fn convert<'f, V: Vendor>(
    file: &'f GmemFile,
    request: &Request,
    outcome: &mut Outcome,
) -> Result<Done<'f>, Failure> {
    // 4. Attributes, folios and bindings are ours from here on.
    file.inode().locked_to_convert(|turn| {
        let held = Held::since_now();
        let result = convert_locked::<V>(file.vm(), turn, request, outcome);
        stats::count(file.vm(), request, &result, outcome, &held);
        result
    })
}

fn convert_locked<'f, V: Vendor>(
    vm: &Vm,
    turn: Turn<'_, 'f>,
    request: &Request,
    outcome: &mut Outcome,
) -> Result<Done<'f>, Failure> {
    if vm.is_dead() {
        return Err(EIO.into());
    }

    // 5. What is there to do?
    let action = V::action(request).map_err(|refusal| Refused {
        error: errno(refusal),
        at: request.range().start(),
    })?;
    let planned = match turn.plan(request, action)? {
        Planning::Nothing(done) => return Ok(done),
        Planning::Change(planned) => planned,
    };
    *outcome = Outcome::of(planned.count()?);
    // 6. Is the platform in the way?
    let accepted = planned.accept(content::owned::<V>(vm, request))?;
    // 7. Room for the result; no large folio has pages that change, and others.
    let reserved = accepted.reserve()?.split()?;
    // 8. Nobody else holds the pages, and the memory that will be written has not failed.
    let checked = reserved.quiesce()?.check()?;

    // 9a. No guest gets a page of the range any more.
    checked.invalidate(|invalidating| {
        // 9b and 9c. Ask what only mmu_lock keeps stable; then remove the old mappings.
        let asked = invalidating.ask(content::mapped::<V>(request))?;
        let zapped = asked.zap()?;
        // 10. The platform gives up what becomes shared; contents.
        let converted = zapped.apply(content::make_shared::<V>, |page, action| {
            content::write::<V>(page, action, outcome)
        })?;
        // 11. Attributes.
        Ok(converted.commit())
        // 12. The invalidation ends, then the lock is released.
    })
}
