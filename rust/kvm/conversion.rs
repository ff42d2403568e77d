// SPDX-License-Identifier: GPL-2.0

//! The steps of a conversion, each a value that only the step before makes, and that the next one
//! consumes: none can be left out, come twice, or come early.
//!
//! The code above decides what is to change and what is done to bytes, and answers for its vendor.
//! Which pages a step is about is looked up here, and what must be so for all of them is seen to
//! here: an answer that is wrong costs the guest's data, or ends in an error.
//!
//! | step | makes | is evidence that |
//! |---|---|---|
//! | [`plan`](InvalidateGuard::plan) | [`Planned`] | the action keeps the promise |
//! | [`accept`](Conversion::accept) | [`Accepted`] | the vendor was asked about each page |
//! | [`reserve`](Conversion::reserve) | [`Reserved`] | storing the attributes cannot fail |
//! | [`quiesce`](Conversion::quiesce) | [`Quiesced`] | the host has none of the pages that become private |
//! | [`check`](Conversion::check) | [`Checked`] | no memory that will be written had failed |
//! | [`invalidate`](Conversion::invalidate) | [`Invalidating`] | no guest gets a page of the range |
//! | [`ask`](Conversion::ask) | [`Asked`] | no guest keeps a page that becomes shared |
//! | [`zap`](Conversion::zap) | [`Zapped`] | the old mappings are gone, and no VM died of it |
//! | [`apply`](Conversion::apply) | [`Converted`] | each page was given up, and its bytes are as promised |

use crate::{
    attribute_map::Reservation,
    fs::address_space::{
        check_killed,
        is_killed,
        Exclusive,
        InvalidateGuard,
        Refused, //
    },
    kvm::{
        mmu::{
            InvalidateSpan,
            Kinds,
            Mapped,
            Zapped, //
        },
        platform::{
            self,
            Fatal,
            GivenUp,
            Kind,
            Written, //
        }, //
    },
    mm::folio::FolioRef, //
};
use gmem_policy::{
    content::{
        Action,
        Content, //
    },
    plan::{
        Change,
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
use kernel::prelude::*;

/// A conversion that has come to a step.
#[must_use = "a conversion that is dropped changes nothing more"]
pub struct Conversion<'c, Step> {
    work: Work<'c>,
    /// [`None`] if no attribute changes and only contents do.
    reservation: Option<Reservation<'c>>,
    step: Step,
}

/// Step 5 is done. Nothing but this file makes one of these.
pub struct Planned(());
/// Step 6 is done.
pub struct Accepted(());
/// Step 7 is done.
pub struct Reserved(());
/// Step 8 is done, but for contents.
pub struct Quiesced(());
/// Step 8 is done.
pub struct Checked(());
/// Step 9a is done.
pub struct Invalidating<'s>(&'s InvalidateSpan<'s>);
/// Step 9b is done.
pub struct Asked<'s>(&'s InvalidateSpan<'s>);
/// Step 10 is done.
pub struct Converted(());

/// What is converted, and the lock that is held for it.
#[derive(Clone, Copy)]
struct Work<'c> {
    guard: &'c InvalidateGuard<'c, Exclusive>,
    change: Change,
}

impl Work<'_> {
    fn range(&self) -> PageRange {
        self.change.range()
    }

    fn to(&self) -> Visibility {
        self.change.to()
    }

    fn refused(&self, error: Error) -> Refused {
        let at = self.range().start();
        Refused { error, at }
    }

    /// Whether the range lies in the file, and no page of it is to become another that the plan has
    /// overlooked.
    fn is_sound(&self) -> bool {
        let (range, whole) = (self.range(), self.guard.inode().geometry().whole());
        let in_file = range.intersect(&whole) == Some(range);

        in_file
            && match self.change.store() {
                Some(store) => store == range,
                None => self
                    .guard
                    .runs(&range)
                    .all(|run| run.visibility == self.to()),
            }
    }

    /// Calls `f` for each allocated folio that there is work with: `work` tells by whether the
    /// folio's attribute changes. Others hold stale bytes of the host, and read as zeroes at their
    /// first use: nobody touches them.
    ///
    /// `goes_on` is called at least before each batch of folios.
    fn for_each_folio(
        &self,
        goes_on: impl Fn(PageIndex) -> Result<(), Refused>,
        work: impl Fn(bool) -> bool,
        mut f: impl FnMut(&FolioRef<'_>, bool) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        if !work(true) && !work(false) {
            return Ok(());
        }
        let Some(populated) = self.guard.populated(&self.range()) else {
            return Ok(());
        };
        for run in self.guard.runs(&populated) {
            let changes = run.visibility != self.to();
            goes_on(run.range.start())?;
            if !work(changes) {
                continue;
            }
            let mut folios = self.guard.folios(&run.range);
            while let Some(batch) = folios.next_batch() {
                goes_on(run.range.start())?;
                for folio in batch.filter(|folio| folio.is_allocated()) {
                    f(&folio, changes)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the action keeps what was asked for: ZERO zeroes, and PRESERVE leaves pages alone.
fn keeps_promise(action: Action, content: Content) -> bool {
    match content {
        Content::Zero => action == Action::Zero,
        Content::Preserve => action == Action::Leave,
        Content::None => true,
    }
}

impl InvalidateGuard<'_, Exclusive> {
    /// Step 5: finds out what there is to do. [`None`] if all is as it was asked for.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if `action` gives less than was asked for. `EINVAL` for a request that is not one
    /// for this file.
    pub fn plan<'c>(
        &'c self,
        request: &Request,
        action: Action,
    ) -> Result<Option<Conversion<'c, Planned>>, Refused> {
        let at = request.range().start();

        if !keeps_promise(action, request.content()) {
            let error = EOPNOTSUPP;
            return Err(Refused { error, at });
        }
        match Plan::new(request, action, self) {
            Plan::Nothing => Ok(None),
            Plan::Change(change) => self.begin(change).map(Some),
        }
    }

    /// The plan is believed only as far as it can be seen to be one for this file as it is.
    pub(crate) fn begin(&self, change: Change) -> Result<Conversion<'_, Planned>, Refused> {
        let guard = self;
        let work = Work { guard, change };

        if !work.is_sound() {
            return Err(work.refused(EINVAL));
        }
        Ok(Conversion {
            work,
            reservation: None,
            step: Planned(()),
        })
    }
}

impl<'c, Step> Conversion<'c, Step> {
    fn then<Next>(self, step: Next) -> Conversion<'c, Next> {
        Conversion {
            work: self.work,
            reservation: self.reservation,
            step,
        }
    }
}

impl<'c> Conversion<'c, Planned> {
    /// How many pages will change between private and shared, and in how many stretches they lie.
    ///
    /// # Errors
    ///
    /// `EINTR` if the task is being killed.
    pub fn count(&self) -> Result<(u64, u64), Refused> {
        self.work
            .change
            .count(self.work.guard, || !is_killed())
            .ok_or_else(|| self.work.refused(EINTR))
    }

    /// Step 6: asks `question`, if there is one, about each allocated page of the range: whether the
    /// platform is in the way of the promise for it.
    ///
    /// # Errors
    ///
    /// The first that `question` returns; `EINTR` if the task is being killed.
    pub fn accept(
        self,
        question: Option<impl FnMut(&FolioRef<'_>) -> Result>,
    ) -> Result<Conversion<'c, Accepted>, Refused> {
        if let Some(mut question) = question {
            self.work.for_each_folio(
                check_killed,
                |_| true,
                |folio, _| {
                    let at = folio.pages().start();
                    question(folio).map_err(|error| Refused { error, at })
                },
            )?;
        }
        Ok(self.then(Accepted(())))
    }
}

impl<'c> Conversion<'c, Accepted> {
    /// Step 7: makes room for the attributes.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn reserve(mut self) -> Result<Conversion<'c, Reserved>, Refused> {
        let work = self.work;
        if let Some(store) = work.change.store() {
            let reservation = work.guard.reserve(&store, work.to());
            self.reservation = Some(reservation.map_err(|error| work.refused(error))?);
        }
        Ok(self.then(Reserved(())))
    }
}

impl<'c> Conversion<'c, Reserved> {
    /// Step 8: takes pages that become private from the host. Nobody else holds them then.
    ///
    /// # Errors
    ///
    /// `EAGAIN` with the first page that is held elsewhere, `EINTR` if the task is being killed. Host
    /// mappings are gone then, too; they fault back.
    pub fn quiesce(self) -> Result<Conversion<'c, Quiesced>, Refused> {
        // Only what becomes private has host mappings to lose.
        if let (Visibility::Private, Some(store)) = (self.work.to(), self.work.change.store()) {
            self.work.guard.quiesce(&store)?;
        }
        Ok(self.then(Quiesced(())))
    }
}

impl<'c> Conversion<'c, Quiesced> {
    /// Step 8, contents: looks for memory that has failed among what will be written.
    ///
    /// # Errors
    ///
    /// `EHWPOISON` with the first such page, `EINTR` if the task is being killed.
    pub fn check(self) -> Result<Conversion<'c, Checked>, Refused> {
        let change = self.work.change;
        self.work.for_each_folio(
            check_killed,
            |_| change.action() != Action::Leave,
            |folio, _| {
                if folio.is_poisoned() {
                    let (error, at) = (EHWPOISON, folio.pages().start());
                    return Err(Refused { error, at });
                }
                Ok(())
            },
        )?;
        Ok(self.then(Checked(())))
    }
}

impl<'c> Conversion<'c, Checked> {
    /// Step 9a: calls `f` while no guest gets a page of the range.
    pub fn invalidate<R>(self, f: impl for<'s> FnOnce(Conversion<'s, Invalidating<'s>>) -> R) -> R {
        let span = InvalidateSpan::begin(self.work.guard, self.work.range());
        f(Conversion {
            work: self.work,
            reservation: self.reservation,
            step: Invalidating(&span),
        })
    }
}

impl<'s> Conversion<'s, Invalidating<'s>> {
    /// Step 9b: asks `question`, if there is one, about each allocated page where a guest can have
    /// it, with the VM's `mmu_lock` held: the answers stay true until the invalidation ends.
    ///
    /// # Errors
    ///
    /// The first that `question` returns; `EPERM` for a page that becomes shared and that a guest
    /// keeps; `EINTR` if the task is being killed, for the last time.
    pub fn ask(
        self,
        question: Option<impl FnMut(&Mapped<'_>) -> Result>,
    ) -> Result<Conversion<'s, Asked<'s>>, Refused> {
        let Invalidating(span) = self.step;
        span.ask(self.work.guard, self.work.to(), question)?;
        check_killed(self.work.range().start())?;
        Ok(self.then(Asked(span)))
    }
}

impl<'s> Conversion<'s, Asked<'s>> {
    /// Step 9c: takes the mappings away that what changes has had.
    ///
    /// A private page that already is private keeps its mapping: on some platforms zapping it would
    /// destroy it, on the others the guest would fault for nothing.
    ///
    /// # Errors
    ///
    /// `EIO` if a VM died of it, with the first page that its platform still has.
    pub fn zap(self) -> Result<Conversion<'s, Zapped<'s>>, Refused> {
        let Asked(span) = self.step;
        let Work { guard, .. } = self.work;
        let old = self.work.to().opposite();

        let zapped = span.zap_pages(
            Kinds::Only(old),
            guard.populated_parts(&self.work.range(), old),
        );
        if zapped.is_dead() {
            let first = span.first_kept(guard, self.work.to());
            let at = first.unwrap_or(self.work.range().start());
            return Err(Refused { error: EIO, at });
        }
        Ok(self.then(zapped))
    }
}

impl<'s> Conversion<'s, Zapped<'s>> {
    /// Step 10: has the platform give up the pages that become shared, and does to contents what
    /// was promised. There is no way back, and no page is left half way.
    ///
    /// `make_shared` makes the platform give a page up, which is looked up afterwards. `write` does
    /// what the plan says; that it has is seen from what it returns.
    ///
    /// # Errors
    ///
    /// `EIO` with a page that the platform did not give up, or that is not as promised. That page is
    /// lost, and the VMs dead.
    pub fn apply(
        self,
        mut make_shared: impl FnMut(&FolioRef<'_>) -> Result<(), Fatal>,
        mut write: impl for<'f> FnMut(GivenUp<'f>, Action) -> Result<Written<'f>, Fatal>,
    ) -> Result<Conversion<'s, Converted>, Refused> {
        let Work { change, .. } = self.work;
        let span = self.step.span();
        let owns_pages = span.any_vm(|vm| platform::kind(vm).is_some_and(Kind::owns_pages));
        let leaves = |changes| changes && owns_pages && change.to() == Visibility::Shared;

        let mut convert = |folio: &FolioRef<'_>, changes| {
            if leaves(changes) {
                make_shared(folio)?;
            }
            // Whatever the vendor says: the host writes no page that a platform has.
            let page = span.given_up(folio, change.to())?;
            match change.action() {
                Action::Leave => Ok(()),
                action if write(page, action)?.is(action) => Ok(()),
                _ => Err(Fatal),
            }
        };
        self.work.for_each_folio(
            // Behind the point of no return.
            |_| Ok(()),
            |changes| leaves(changes) || change.action() != Action::Leave,
            |folio, changes| {
                convert(folio, changes).map_err(|Fatal| {
                    span.lose(folio);
                    let at = folio.pages().start();
                    Refused { error: EIO, at }
                })
            },
        )?;
        Ok(self.then(Converted(())))
    }
}

impl Conversion<'_, Converted> {
    /// Step 11: stores the attributes. Cannot fail.
    pub fn commit(self) {
        if let Some(reservation) = self.reservation {
            reservation.store();
        }
    }
}
